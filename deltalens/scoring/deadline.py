"""An end to Python code of a stranger's that may have none: a chat template that loops."""

from __future__ import annotations

import ctypes
import threading
import time
from types import TracebackType
from typing import Self

from deltalens.errors import DataError

__all__ = ["Deadline"]


class _TooLong(BaseException):
    """Raised in the code that takes too long: no `except Exception` in it may take it."""


class Deadline:
    """Around code in Python: every piece of it ends in time, or is ended.

    A thread beside it looks at the clock, so that it costs the code nothing and works in any
    thread. What C does in one call is not ended.

    Args:
        seconds: that a piece may take.

    Raises:
        DataError: one took longer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._what = seconds, "this"
        self._since: float | None = None
        self._fired = False
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.get_ident()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def restart(self, what: str) -> None:
        """A piece begins, which is called so."""
        self._what, self._since = what, time.monotonic()

    def __enter__(self) -> Self:
        self._watching.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        with self._lock:
            if self._fired and not isinstance(error, _TooLong):
                # Just too late: what is on its way to this thread is called back.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
        if isinstance(error, _TooLong):
            raise DataError(
                f"{self._what} takes more than {self._seconds:.0f} s; it may have no end"
            ) from error

    def _watch(self) -> None:
        while not self._done.wait(self._seconds / 10):
            with self._lock:
                since = self._since
                late = since is not None and time.monotonic() - since > self._seconds
                if late and not self._done.is_set():
                    self._fired = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(self._thread), ctypes.py_object(_TooLong)
                    )
                    return
