"""Files that appear whole or not at all.

A folder may come from an untrusted source. A file is therefore written under a temporary name that
only this process uses, and then renamed over whatever has the final name: no link is followed. A
file that is read or appended to is opened without following links and without blocking, and must be
a regular file.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.platform import sync
from deltalens.io.temporary import remove_stale, temporary_name

__all__ = [
    "append_to",
    "copy_beside",
    "discard",
    "open_descriptor",
    "open_input",
    "open_plain",
    "os_reason",
    "read_bounded",
    "read_plain",
    "replacing",
    "sync_folder",
    "write_whole",
    "writing_whole",
]


def open_descriptor(file: Path, flags: int) -> int:
    """Open a regular file, but no link, pipe or device.

    Args:
        file: the path.
        flags: flags of `os.open`.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        RecordError: it is not a regular file.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode=0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise RecordError(_not_plain(file)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordError(_not_plain(file))
    return descriptor


def _not_plain(file: Path) -> str:
    return f"{file}: a link, folder, pipe or device where a plain file should be; remove it"


def open_plain(file: Path) -> IO[bytes]:
    """Open a file of records for reading.

    Returns:
        A binary stream, which the caller closes.

    Raises:
        RecordError: it is not a regular file.
        OSError: it cannot be read.
    """
    return os.fdopen(open_descriptor(file, os.O_RDONLY), "rb")


def read_plain(file: Path) -> bytes:
    """Read a file of records.

    Returns:
        The file's content.

    Raises:
        RecordError: it is not a regular file.
        OSError: it cannot be read.
    """
    with open_plain(file) as stream:
        return stream.read()


def open_input(file: Path) -> io.BufferedReader:
    """Open a file that a user named, for reading. Links are followed. A pipe is read as it is
    written; one without a writer counts as empty, instead of blocking.

    Returns:
        A binary stream, which the caller closes.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    try:
        return open(descriptor, "rb")
    except OSError:  # A folder.
        os.close(descriptor)
        raise


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Replace a file with one that is written under a temporary name in the block.

    Args:
        file: the final path.

    Yields:
        The temporary path to write to; it is renamed to `file` at the end of the block.

    Raises:
        DeltaLensError: the disk is full, or the folder is not writable.
    """
    temporary = temporary_name(file)
    try:
        remove_stale(file)
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        raise DeltaLensError(f"{file}: cannot be written: {os_reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing_whole(file: Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: a reader sees either the old content or the new.

    Args:
        file: the path.

    Yields:
        A binary stream for the new content, which is flushed to the disk at the end of the block.

    Raises:
        DeltaLensError: the disk is full, or the folder is not writable.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        replacing(file) as temporary,
        os.fdopen(os.open(temporary, flags, mode=0o666), "wb") as stream,
    ):
        yield stream
        stream.flush()
        sync(stream.fileno())


def write_whole(file: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees either the old content or the new.

    Args:
        file: the path.
        content: all that the file is to hold.

    Raises:
        DeltaLensError: the disk is full, or the folder is not writable.
    """
    with writing_whole(file) as stream:
        stream.write(content)


def append_to(file: Path, content: bytes) -> None:
    """Append to a file of records, and flush it to the disk.

    Args:
        file: the path; the file is created if missing.
        content: the bytes to append.

    Raises:
        RecordError: it is not a regular file, or cannot be written (the message has the reason).
    """
    try:
        descriptor = open_descriptor(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
    except OSError as error:
        raise RecordError(
            f"{file}: cannot be written: {os_reason(error)}; its previous content is safe"
        ) from error


def read_bounded(file: Path, most: int, what: str, kind: type[DeltaLensError]) -> bytes:
    """Read a file that a user named, unless it is implausibly large.

    Args:
        file: the path.
        most: the largest size allowed, in bytes.
        what: what the file should be, for the message: "a recipe".
        kind: the class of error to raise.

    Returns:
        The file's content.

    Raises:
        DeltaLensError: (as `kind`) the file cannot be read, or is larger than `most`.
    """
    try:
        with open_input(file) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise kind(f"{file}: cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise kind(f"{file}: more than {most:,} bytes, too large for {what}")
    return content


def discard(file: Path) -> None:
    """Remove a file of records, or a link or pipe of that name, if there is one.

    Raises:
        RecordError: it is a folder, or may not be removed.
    """
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(f"{file}: cannot be removed: {os_reason(error)}") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to the disk, so that its files survive a crash.

    Raises:
        OSError: the folder cannot be opened, or not written.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def copy_beside(file: Path, folder: Path, target: Path) -> None:
    """Copy a file that is stored beside a model's weights.

    A link is followed only within the folder, or to the blobs of the hub's cache. Any other link is
    skipped with a warning: in an untrusted folder, it could point to any file of this machine.

    Args:
        file: a file in `folder`.
        folder: the folder with the weights.
        target: the new file.

    Raises:
        RecordError: it is not a regular file.
        OSError: it cannot be copied.
    """
    root = folder.resolve()
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError):  # A broken link, or a cycle of links.
        real = None
    cache = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    if real is None or not (root in real.parents or real.parent == cache):
        warnings.warn(f"{file}: a link that points outside the folder; not copied", stacklevel=2)
    elif real.is_file():
        with open_plain(real) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)


def os_reason(error: Exception) -> str:
    """Get the operating system's reason for an error, for a message.

    Returns:
        A few words, such as "no space left".
    """
    if isinstance(error, OSError):
        return "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return str(error)
