"""System calls that some platforms and file systems lack (macOS, network and overlay file systems),
with fallbacks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = [
    "MOST_BYTES",
    "advise_sequential",
    "lock",
    "quiet_panics",
    "read_into",
    "reserve",
    "sync",
]

_LACKING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Error numbers of a call that the kernel supports and the file system does not."""
MOST_BYTES = 1 << 30
"""Bytes read at once: macOS refuses 2 GiB and more."""


def advise_sequential(descriptor: int) -> None:
    """Tell the kernel, if it takes such advice, that a file is read from front to back.

    Args:
        descriptor: of the open file.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def reserve(descriptor: int, size: int) -> None:
    """Give a file its full size, and allocate its blocks where the file system can do so, so that
    the disk cannot fill up later.

    Args:
        descriptor: of the open file.
        size: in bytes.

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


def read_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Read bytes into an existing buffer.

    Args:
        descriptor: of the open file.
        target: the buffer; it may be filled in part only.
        offset: position of the first byte in the file.

    Returns:
        How many bytes were read; 0 at the end of the file.

    Raises:
        OSError: the file cannot be read.
    """
    part = target[:MOST_BYTES]
    if hasattr(os, "preadv"):
        try:
            return os.preadv(descriptor, [part], offset)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
    piece = os.pread(descriptor, len(part), offset)
    part[: len(piece)] = piece
    return len(piece)


def lock(descriptor: int) -> bool:
    """Try to lock a file for this process.

    Args:
        descriptor: of the open file.

    Returns:
        False if another process holds the lock. On a file system without locks, always True.

    Raises:
        OSError: locking failed for another reason.
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
    """Flush a file or folder to the disk, where the file system supports it.

    Args:
        descriptor: of the open file or folder.

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
    """Suppress the page of stack trace that a library written in Rust prints when it panics; the
    exception has the reason.

    Standard error is held back during the block. Unless there was a panic, it is written at the
    end. Where the kernel has no in-memory files, nothing is held back.

    Yields:
        None.
    """
    try:
        captured, stderr = os.memfd_create("stderr"), os.dup(2)
    except (AttributeError, OSError):
        yield
        return
    os.dup2(captured, 2)
    panicked = False
    try:
        yield
    except BaseException as error:
        panicked = any(type(cause).__name__ == "PanicException" for cause in _causes(error))
        raise
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.lseek(captured, 0, os.SEEK_SET)
        with os.fdopen(captured, "rb") as stream, suppress(OSError):
            if not panicked and (text := stream.read()):
                os.write(2, text)
