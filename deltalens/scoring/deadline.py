"""A time limit for untrusted Python code that may never end, such as a looping chat template."""

from __future__ import annotations

import ctypes
import threading
import time
from types import TracebackType
from typing import Self

from deltalens.errors import DataError

__all__ = ["Deadline"]


class _TooLong(BaseException):
    """Raised inside code that takes too long. Not an `Exception`, so that the code does not catch
    it."""


class Deadline:
    """A context in which every piece of Python code has to end in time, or is interrupted.

    A second thread watches the clock, so that the code is not slowed down, and any thread can use
    this. A single call into C is not interrupted.

    Args:
        seconds: how long each piece may take.

    Raises:
        DataError: a piece took longer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._what = seconds, "this"
        self._since: float | None = None
        self._fired = False
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.get_ident()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def restart(self, what: str) -> None:
        """Start the clock for the next piece.

        Args:
            what: what the piece is, for the message.
        """
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
                # The code ended just now: cancel the exception that is on its way to this thread.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
        if isinstance(error, _TooLong):
            raise DataError(
                f"{self._what} takes more than {self._seconds:.0f} s; it may never end"
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
