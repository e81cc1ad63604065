"""Files and folders that appear whole or not at all.

A folder may come from a stranger. What is written goes to a new file under a name of this process's
own, which then takes the place of whatever bears the final name: no link is followed. What is read,
locked or added to is opened without following a link and without waiting, and has to be a plain
file.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.platform import lock, sync

__all__ = [
    "append_to",
    "check_new_folder",
    "check_space",
    "copy_beside",
    "discard",
    "is_remains",
    "is_temporary",
    "lock_folder",
    "new_folder",
    "open_input",
    "open_plain",
    "passing_folder",
    "read_plain",
    "replacing",
    "sync_folder",
    "unlock_folder",
    "write_whole",
    "writing_whole",
]

LOCK = ".lock"
"""In a folder that one process at a time writes to."""
_HOST = f"{zlib.crc32(os.uname().nodename.encode()):08x}"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[^.]*\.part")


def check_new_folder(out: Path, inputs: list[Path], locked: bool = False) -> None:
    """Refuse an output folder that holds something, is an input, or cannot be made.

    Args:
        out: the folder.
        inputs: what is read.
        locked: it is one that is locked before anything else is written: what a process left there
            that was killed right then does not count.

    Raises:
        DeltaLensError: before any work.
    """
    try:
        place = out.resolve()
        for given in inputs:
            _check_apart(out, place, given)
        if place.exists() and not place.is_dir():
            raise DeltaLensError(f"{out}: is a file; choose another folder")
        held = place.iterdir() if place.exists() else ()
        if found := sorted(one.name for one in held if not (locked and is_remains(one.name))):
            raise DeltaLensError(
                f"{out}: exists already and holds {found[0]!r}; remove it or choose another folder"
            )
        if place.is_mount():
            raise DeltaLensError(f"{out}: is a mount point; choose a new folder in it")
        parent = _parent(place)
    except (OSError, RuntimeError, ValueError) as error:
        raise DeltaLensError(f"{out}: cannot be made: {_why(error)}") from error
    if not parent.is_dir():
        raise DeltaLensError(f"{out}: cannot be made: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise DeltaLensError(f"{out}: cannot be made in {parent}: no right to write there")


def _check_apart(out: Path, place: Path, given: Path) -> None:
    taken = given.resolve()
    if place == taken or taken in place.parents:
        raise DeltaLensError(f"{out}: is (or lies in) the input {given}; choose another folder")
    if place in taken.parents:
        raise DeltaLensError(f"{out}: holds the input {given}; choose another folder")


def _parent(place: Path) -> Path:
    """The nearest folder above that exists."""
    return next(folder for folder in place.parents if folder.exists())


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return str(error)


def check_space(out: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        DeltaLensError: `needed` bytes and those free, both printed.
    """
    parent = _parent(out.resolve())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DeltaLensError(
            f"{out}: no space left: {_size(needed)} needed, {_size(free)} free on the disk of "
            f"{parent}; make room, or choose a folder on another disk"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count:,} bytes"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; renamed to `out` at the end, removed on any error.

    Raises:
        DeltaLensError: the disk is full, or the folder cannot be written.
    """
    place = out.resolve()
    missing = [folder for folder in place.parents if not folder.exists()]
    temporary: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(place)
        temporary = _temporary(place)
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        os.replace(temporary, place)
        sync_folder(place.parent)
    except OSError as error:
        raise DeltaLensError(f"{out}: cannot be written: {_why(error)}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in missing:
            # Only those go that are empty: above an output that did not appear.
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def passing_folder(name: str) -> Iterator[Path]:
    """A folder where the system has temporary ones, for as long as the block. What killed processes
    left of the same name goes first: it may be as large as a model.

    Raises:
        DeltaLensError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) / name
    try:
        _remove_stale(place)
        temporary = _temporary(place)
        temporary.mkdir(mode=0o700)
    except OSError as error:
        raise DeltaLensError(f"{place.parent}: cannot be written: {_why(error)}") from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(place: Path) -> Path:
    """A name that nothing bears, beside a file or folder; it says whose it is."""
    owner = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    return place.with_name(f".{place.name}.{owner}.part")


def is_temporary(name: str, of: str | None = None) -> bool:
    """Whether a file's name is one under which something was being written (`of` names what)."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and of in (None, found["name"])


def is_remains(name: str) -> bool:
    """Whether a file's name is one that a killed process leaves in a folder that it had locked."""
    return name == LOCK or is_temporary(name)


def _remove_stale(place: Path) -> None:
    """Remove what processes of this machine that are gone left under temporary names."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.*.part"):
        found = _TEMPORARY.fullmatch(left.name)
        if found is None or found["name"] != place.name or found["host"] != _HOST:
            continue
        if _runs(int(found["process"])):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write a file at, which then takes the file's place.

    Raises:
        DeltaLensError: the disk is full, or there is no right to write.
    """
    temporary = _temporary(file)
    try:
        _remove_stale(file)
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        raise DeltaLensError(f"{file}: cannot be written: {_why(error)}") from error
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


def _open_plain(file: Path, flags: int) -> int:
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
    return os.fdopen(_open_plain(file, os.O_RDONLY), "rb")


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


def discard(file: Path) -> None:
    """Remove a file of records, or a link or pipe in its place, if there is one.

    Raises:
        RecordError: it is a folder, or there is no right to.
    """
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(f"{file}: cannot be removed: {_why(error)}") from error


def append_to(file: Path, content: bytes) -> None:
    """Add to a file of records, and bring it to the disk.

    Raises:
        RecordError: it is not a plain file, or the disk is full (the reason is in it).
    """
    try:
        with os.fdopen(_open_plain(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
    except OSError as error:
        raise RecordError(
            f"{file}: cannot be written: {_why(error)}; what it held before is safe"
        ) from error


def lock_folder(folder: Path, what: str) -> IO[bytes]:
    """Keep other processes from writing to a folder, until the returned file is closed.

    Args:
        folder: which holds records.
        what: they are of: "study", "training".

    Raises:
        RecordError: another process has it.
        OSError: the file cannot be made.
    """
    while True:
        held = os.fdopen(_open_plain(folder / LOCK, os.O_RDWR | os.O_CREAT), "r+b")
        if not lock(held.fileno()):
            held.close()
            raise RecordError(f"{folder}: another process is writing to this {what}")
        if _lies_there(held, folder / LOCK):
            return held
        # Who had it has removed the file in between: a third process may have made a new one.
        held.close()


def unlock_folder(folder: Path, held: IO[bytes]) -> None:
    """Let other processes write to a folder again; nothing stays of the lock."""
    if _lies_there(held, folder / LOCK):
        with suppress(OSError):
            (folder / LOCK).unlink()
    held.close()


def _lies_there(stream: IO[bytes], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.lstat(file))
    except OSError:
        return False


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
        with os.fdopen(_open_plain(real, os.O_RDONLY), "rb") as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
