"""Folders that one process at a time writes to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from deltalens.errors import RecordError
from deltalens.io.files import open_descriptor
from deltalens.io.platform import lock
from deltalens.io.temporary import is_temporary

__all__ = ["LOCK", "is_remains", "lock_folder", "unlock_folder"]

LOCK = ".lock"
"""In a folder that one process at a time writes to."""


def is_remains(name: str) -> bool:
    """Whether a file's name is one that a killed process leaves in a folder that it had locked."""
    return name == LOCK or is_temporary(name)


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
        held = os.fdopen(open_descriptor(folder / LOCK, os.O_RDWR | os.O_CREAT), "r+b")
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
