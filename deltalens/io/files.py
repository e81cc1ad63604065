"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltalens.errors import DeltaLensError
from deltalens.io.platform import sync

__all__ = ["check_new_folder", "check_space", "new_folder", "sync_folder", "write_whole"]


def check_new_folder(out: Path, inputs: list[Path]) -> None:
    """Refuse an output folder that holds something, is an input, or cannot be made.

    Raises:
        DeltaLensError: before any work.
    """
    try:
        place = out.resolve()
        for given in inputs:
            _check_apart(out, place, given)
        if place.exists() and not place.is_dir():
            raise DeltaLensError(f"{out}: is a file; choose another folder")
        if place.exists() and (found := sorted(file.name for file in place.iterdir())):
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
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent)
        )
        temporary.chmod(0o755)
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = file.with_name(f".{file.name}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise DeltaLensError(f"{file}: cannot be written: {_why(error)}") from error
