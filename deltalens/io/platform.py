"""What some platforms and file systems lack (macOS, network and overlay file systems): done in the
plainer way there."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["advise_sequential", "lock", "quiet_panics", "read_into", "reserve", "sync"]

_LACKING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What a call says that the kernel has and the file system has not."""
_MOST = 1 << 30
"""Bytes asked for at once: macOS refuses 2 GiB and more."""


def advise_sequential(descriptor: int) -> None:
    """Tell the kernel that a file is read from front to back, where it listens."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def reserve(descriptor: int, size: int) -> None:
    """Give a file its full size: with its blocks, so that the disk cannot fill up later, or where
    that is not to be had without them.

    Raises:
        OSError: no space left, or another fault of the disk.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
    os.ftruncate(descriptor, size)


def read_into(descriptor: int, target: memoryview, at: int) -> int:
    """Read bytes at a place into memory that is there; how many, 0 at the end of the file."""
    part = target[:_MOST]
    if hasattr(os, "preadv"):
        try:
            return os.preadv(descriptor, [part], at)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
    piece = os.pread(descriptor, len(part), at)
    part[: len(piece)] = piece
    return len(piece)


def lock(descriptor: int) -> bool:
    """Lock a file for this process; whether nobody else has it. A file system without locks cannot
    tell: there it is taken to be free.

    Raises:
        OSError: another fault.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in {*_LACKING, errno.ENOLCK}:
            raise
    return True


def sync(descriptor: int) -> None:
    """Make a file or folder survive a crash, where the file system can.

    Raises:
        OSError: it could not be written.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _LACKING:
            raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Keep off standard error what a library written in Rust prints there when it panics, a page of
    its stack: the exception says it. What else is printed comes through at the end; where the
    kernel has no files in memory, nothing is kept."""
    try:
        held, own = os.memfd_create("stderr"), os.dup(2)
    except (AttributeError, OSError):
        yield
        return
    os.dup2(held, 2)
    panicked = False
    try:
        yield
    except BaseException as error:
        panicked = any(type(one).__name__ == "PanicException" for one in _causes(error))
        raise
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.lseek(held, 0, os.SEEK_SET)
        with os.fdopen(held, "rb") as said, suppress(OSError):
            if not panicked and (text := said.read()):
                os.write(2, text)
