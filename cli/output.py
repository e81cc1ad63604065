"""The program's own standard streams: full, closed, or of another encoding."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from deltalens.errors import DeltaLensError

__all__ = ["check_streams"]


def check_streams() -> None:
    """Make the standard streams safe to print to.

    A closed one is opened on nothing: else the next file that is opened would take its place, and
    be printed into. A character that an encoding lacks is escaped. Standard output that cannot be
    written is a `DeltaLensError`, once; standard error, which only tells how the work goes, is then
    silent, and the work goes on.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number: this one. Nothing can be written to what is open to be read.
            os.open(os.devnull, os.O_RDONLY)
    sys.stdout = _text(1, sys.stdout, quiet=False)
    sys.stderr = _text(2, sys.stderr, quiet=True)


def _text(descriptor: int, stream: Any, *, quiet: bool) -> io.TextIOWrapper:
    raw = _Stream(descriptor, quiet)
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=quiet or raw.isatty(),
    )


class _Stream(io.RawIOBase):
    """A standard stream that says once that it cannot be written; or never."""

    def __init__(self, descriptor: int, quiet: bool) -> None:
        self._descriptor, self._quiet, self._broken = descriptor, quiet, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        if self._broken:
            return size
        try:
            return os.write(self._descriptor, content)
        except OSError as error:
            # What is left in a buffer is written once more at the end of the process.
            self._broken = True
            if self._quiet:
                return size
            if isinstance(error, BrokenPipeError):
                raise
            raise DeltaLensError(
                f"standard output cannot be written: {error.strerror}; what the command made is "
                "kept"
            ) from error
