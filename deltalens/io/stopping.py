"""How a process is asked to stop: Ctrl-C, `kill`, and a terminal that closes.

Who was told to ignore one of them goes on: under `nohup` a terminal may close, and what a shell
runs in the background hears no Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["ignore_requests", "on_request"]

_REQUESTS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextmanager
def on_request(stop: Callable[[int, Any], None]) -> Iterator[None]:
    """Call a handler whenever this process is asked to stop, for the duration of the block.

    Args:
        stop: takes the signal's number and the frame; a handler as `signal.signal` wants it.
            Outside the main thread, where Python takes no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in _REQUESTS}
    # None: a handler that was not installed from Python, and could not be put back.
    changed = [one for one, held in before.items() if held not in (signal.SIG_IGN, None)]

    def heard(number: int, frame: Any) -> None:
        _let_go_of_closed()
        stop(number, frame)

    for one in changed:
        signal.signal(one, heard)
    try:
        yield
    finally:
        for one in changed:
            signal.signal(one, before[one])


def _let_go_of_closed() -> None:
    """What is said to a terminal that has closed would be an error, in the middle of what is still
    to be done."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def ignore_requests() -> None:
    """A process that ends with the one that began it: that one alone is asked."""
    for one in _REQUESTS:
        signal.signal(one, signal.SIG_IGN)
