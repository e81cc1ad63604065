"""Handling of signals that ask a process to stop: Ctrl-C, `kill`, and a terminal that closes.

A signal that the process was started to ignore stays ignored: under `nohup` the terminal may close,
and a shell's background processes ignore Ctrl-C.
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
    """Call a handler whenever this process is asked to stop, for the duration of the block. Outside
    the main thread, where Python installs no handlers, nothing changes.

    Args:
        stop: the handler, as for `signal.signal`: called with the signal's number and the frame.

    Yields:
        None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {request: signal.getsignal(request) for request in _REQUESTS}
    # None stands for a handler that was not installed from Python, and could not be restored.
    changed = [
        request for request, handler in before.items() if handler not in (signal.SIG_IGN, None)
    ]

    def handle(number: int, frame: Any) -> None:
        _redirect_closed_output()
        stop(number, frame)

    for request in changed:
        signal.signal(request, handle)
    try:
        yield
    finally:
        for request in changed:
            signal.signal(request, before[request])


def _redirect_closed_output() -> None:
    """Send output to nowhere if the terminal has closed: printing to it would raise an error in the
    middle of the work that is left to do."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def ignore_requests() -> None:
    """Ignore requests to stop, in a worker process that its parent ends."""
    for request in _REQUESTS:
        signal.signal(request, signal.SIG_IGN)
