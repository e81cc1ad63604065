"""Folders that appear whole or not at all, and the checks before one is created."""

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
    "remove",
    "remove_empty",
    "temporary_folder",
]


def check_new_folder(out: Path, inputs: list[Path], locked: bool = False) -> None:
    """Refuse an output folder that is not empty, overlaps an input, or cannot be created.

    Args:
        out: the folder.
        inputs: paths that are read.
        locked: whether the folder gets a lock before anything else is written to it. If so, the
            lock and temporary files that a killed process left in it do not count as content.

    Raises:
        DeltaLensError: says why the folder cannot be used.
    """
    try:
        resolved = out.resolve()
        for path in inputs:
            _check_apart(out, resolved, path)
        if resolved.exists() and not resolved.is_dir():
            raise DeltaLensError(f"{out}: is a file; choose another folder")
        contents = resolved.iterdir() if resolved.exists() else ()
        names = sorted(path.name for path in contents if not (locked and is_remains(path.name)))
        if names:
            raise DeltaLensError(
                f"{out}: already exists and contains {names[0]!r}; remove it or choose another "
                "folder"
            )
        if resolved.is_mount():
            raise DeltaLensError(f"{out}: is a mount point; choose a new folder in it")
        parent = _existing_parent(resolved)
    except (OSError, RuntimeError, ValueError) as error:
        raise DeltaLensError(f"{out}: cannot be created: {os_reason(error)}") from error
    if not parent.is_dir():
        raise DeltaLensError(f"{out}: cannot be created: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise DeltaLensError(f"{out}: cannot be created: {parent} is not writable")


def _check_apart(out: Path, resolved: Path, path: Path) -> None:
    source = path.resolve()
    if resolved == source or source in resolved.parents:
        raise DeltaLensError(f"{out}: is (or lies in) the input {path}; choose another folder")
    if resolved in source.parents:
        raise DeltaLensError(f"{out}: contains the input {path}; choose another folder")


def _existing_parent(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    return next(folder for folder in path.parents if folder.exists())


def check_space(out: Path, needed: int) -> None:
    """Refuse to write more than the disk has room for.

    Args:
        out: the folder that would be written.
        needed: its size, in bytes.

    Raises:
        DeltaLensError: states how many bytes are needed and how many are free.
    """
    parent = _existing_parent(out.resolve())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DeltaLensError(
            f"{out}: no space left: {_size(needed)} needed, {_size(free)} free on the disk of "
            f"{parent}; make room, or choose a folder on another disk"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count:,} bytes"


def make_folders(path: Path) -> list[Path]:
    """Create a folder and its missing parents.

    Args:
        path: the folder.

    Returns:
        The folders that were created, innermost first, for `remove_empty`.

    Raises:
        OSError: one cannot be created; those created before it are removed again.
    """
    path = path.absolute()
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(created)
        raise
    return created


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty.

    Args:
        folders: innermost first.
    """
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove(path: Path) -> None:
    """Remove a folder with its contents, or a file or link of that name, if there is one. A link's
    target stays.

    Raises:
        RecordError: it may not be removed.
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
    """Create a folder that appears complete at the end of the block, or not at all.

    Args:
        out: the folder.

    Yields:
        A temporary folder to fill; it is renamed to `out` at the end, and removed on any error.

    Raises:
        DeltaLensError: the disk is full, or the folder cannot be written.
    """
    resolved = out.resolve()
    created: list[Path] = []
    temporary: Path | None = None
    try:
        created = make_folders(resolved.parent)
        remove_stale(resolved)
        temporary = temporary_name(resolved)
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        os.replace(temporary, resolved)
        sync_folder(resolved.parent)
    except OSError as error:
        raise DeltaLensError(f"{out}: cannot be written: {os_reason(error)}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(created)  # Parents of an output that was not completed.


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Create a folder in the system's temporary directory for the duration of the block.

    Folders of the same name that killed processes left behind are removed first: they may be as
    large as a model.

    Args:
        name: what the folder's name begins with.

    Yields:
        The folder; it is removed with its contents at the end of the block.

    Raises:
        DeltaLensError: it cannot be created.
    """
    path = Path(tempfile.gettempdir()) / name
    try:
        remove_stale(path)
        temporary = temporary_name(path)
        temporary.mkdir(mode=0o700)
    except OSError as error:
        raise DeltaLensError(f"{path.parent}: cannot be written: {os_reason(error)}") from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
