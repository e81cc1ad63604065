"""Folders that appear whole or not at all, and the checks before one is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.files import os_reason, sync_folder
from deltalens.io.locks import is_remains
from deltalens.io.temporary import remove_stale, temporary_name

__all__ = [
    "check_new_folder",
    "check_space",
    "make_folders",
    "new_folder",
    "passing_folder",
    "remove",
    "remove_empty",
]


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
        raise DeltaLensError(f"{out}: cannot be made: {os_reason(error)}") from error
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


def make_folders(path: Path) -> list[Path]:
    """Make a folder, and those above it that are missing.

    Returns:
        What was made, for `remove_empty`.

    Raises:
        OSError: one cannot be made; then none is left.
    """
    path = path.absolute()
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that were made for something that did not come, the innermost first; one that
    holds anything stays."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove(path: Path) -> None:
    """Remove a folder with what is in it, or whatever lies in its place; a link, not where it
    leads. It may be gone already.

    Raises:
        RecordError: there is no right to.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(f"{path}: cannot be removed: {error}") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; renamed to `out` at the end, removed on any error.

    Raises:
        DeltaLensError: the disk is full, or the folder cannot be written.
    """
    place = out.resolve()
    made: list[Path] = []
    temporary: Path | None = None
    try:
        made = make_folders(place.parent)
        remove_stale(place)
        temporary = temporary_name(place)
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        os.replace(temporary, place)
        sync_folder(place.parent)
    except OSError as error:
        raise DeltaLensError(f"{out}: cannot be written: {os_reason(error)}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(made)  # Above an output that did not appear.


@contextmanager
def passing_folder(name: str) -> Iterator[Path]:
    """A folder where the system has temporary ones, for as long as the block. What killed processes
    left of the same name goes first: it may be as large as a model.

    Raises:
        DeltaLensError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) / name
    try:
        remove_stale(place)
        temporary = temporary_name(place)
        temporary.mkdir(mode=0o700)
    except OSError as error:
        raise DeltaLensError(f"{place.parent}: cannot be written: {os_reason(error)}") from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
