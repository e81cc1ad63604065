"""Files that appear whole or not at all.

A folder may come from a stranger. What is written goes to a new file under a name of this process's
own, which then takes the place of whatever bears the final name: no link is followed. What is read
or added to is opened without following a link and without waiting, and has to be a plain file.
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
    """A descriptor of a plain file: not of what a link leads to, a pipe or a device.

    Raises:
        RecordError: it is none.
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
    """A file of records, to be read.

    Raises:
        RecordError: it is not a plain file.
        OSError: it cannot be read.
    """
    return os.fdopen(open_descriptor(file, os.O_RDONLY), "rb")


def read_plain(file: Path) -> bytes:
    """A file of records, whole.

    Raises:
        RecordError: it is not a plain file.
        OSError: it cannot be read.
    """
    with open_plain(file) as stream:
        return stream.read()


def open_input(file: Path) -> io.BufferedReader:
    """A file that a user names, to be read. A link is followed, and a pipe is read from its writer:
    one that has none is empty, and nobody waits for one.

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
    """A path to write a file at, which then takes the file's place.

    Raises:
        DeltaLensError: the disk is full, or there is no right to write.
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
    """A stream to write a file with: a reader sees the old content or the new, never a part.

    Raises:
        DeltaLensError: the disk is full, or there is no right to write.
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
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        DeltaLensError: the disk is full, or there is no right to write.
    """
    with writing_whole(file) as stream:
        stream.write(content)


def append_to(file: Path, content: bytes) -> None:
    """Add to a file of records, and bring it to the disk.

    Raises:
        RecordError: it is not a plain file, or the disk is full (the reason is in it).
    """
    try:
        descriptor = open_descriptor(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
    except OSError as error:
        raise RecordError(
            f"{file}: cannot be written: {os_reason(error)}; what it held before is safe"
        ) from error


def read_bounded(file: Path, most: int, what: str, kind: type[DeltaLensError]) -> bytes:
    """A file that a user names, whole.

    Args:
        file: the path.
        most: bytes that it may have.
        what: it should be, for the message: "recipe".
        kind: of error.

    Raises:
        DeltaLensError: of that kind: it cannot be read, or is longer.
    """
    try:
        with open_input(file) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise kind(f"{file}: cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise kind(f"{file}: longer than {most:,} bytes, which no {what} is")
    return content


def discard(file: Path) -> None:
    """Remove a file of records, or a link or pipe in its place, if there is one.

    Raises:
        RecordError: it is a folder, or there is no right to.
    """
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(f"{file}: cannot be removed: {os_reason(error)}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def copy_beside(file: Path, folder: Path, target: Path) -> None:
    """Copy a file that lies beside a model's weights: a plain one, or what a link leads to that
    stays in the folder, or is how the hub's cache keeps it. Another link is passed over, with a
    warning: a received folder could name any file of this machine.

    Args:
        file: of the folder.
        folder: with the weights.
        target: the new file.

    Raises:
        OSError: it cannot be copied.
    """
    home = folder.resolve()
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError):  # It leads nowhere, or in a circle.
        real = None
    cached = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if real is None or not (home in real.parents or real.parent == cached):
        warnings.warn(f"{file}: a link that leads out of the folder; not copied", stacklevel=2)
    elif real.is_file():
        with open_plain(real) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)


def os_reason(error: Exception) -> str:
    """Why the system would not, for a message."""
    if isinstance(error, OSError):
        return "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return str(error)
