"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltalens.errors import DeltaLensError

__all__ = ["check_new_folder", "check_space", "new_folder", "sync_folder", "write_whole"]


def check_new_folder(out: Path, inputs: list[Path]) -> None:
    """Refuse an output folder that holds something, is an input, or cannot be made.

    Raises:
        DeltaLensError: before any work.
    """
    for given in inputs:
        if out.resolve() == given.resolve() or given.resolve() in out.resolve().parents:
            raise DeltaLensError(f"{out}: is (or lies in) the input {given}; choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DeltaLensError(f"{out}: exists already; remove it or choose another folder")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DeltaLensError(f"{out}: cannot be made in {parent}: no right to write there")


def check_space(out: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        DeltaLensError: `needed` bytes and those free, both printed.
    """
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DeltaLensError(
            f"{out}: no space left: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free on "
            f"the disk of {parent}"
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; renamed to `out` at the end, removed on any error.

    Raises:
        DeltaLensError: the disk is full, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        temporary.chmod(0o755)
        yield temporary
        sync_folder(temporary)
        os.replace(temporary, out)
        sync_folder(out.parent)
    except OSError as error:
        why = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise DeltaLensError(f"{out}: cannot be written: {why}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
        temporary.unlink(missing_ok=True)
        raise DeltaLensError(f"{file}: cannot be written: {error.strerror}") from error
