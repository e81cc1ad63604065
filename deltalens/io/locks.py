"""Locks on folders, so that only one process at a time writes to each."""

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
"""Name of the lock file in a folder of records."""


def is_remains(name: str) -> bool:
    """Tell whether a process that was killed may leave a file of this name in a folder it locked.

    Returns:
        True for the lock file, and for names of temporary files.
    """
    return name == LOCK or is_temporary(name)


def lock_folder(folder: Path, what: str) -> IO[bytes]:
    """Keep other processes from writing to a folder, until `unlock_folder`.

    Args:
        folder: a folder of records.
        what: the kind of record, for the message: "study", "training".

    Returns:
        The open lock file.

    Raises:
        RecordError: another process holds the lock.
        OSError: the lock file cannot be created.
    """
    while True:
        lock_file = os.fdopen(open_descriptor(folder / LOCK, os.O_RDWR | os.O_CREAT), "r+b")
        if not lock(lock_file.fileno()):
            lock_file.close()
            raise RecordError(f"{folder}: another process is writing to this {what}")
        if _is_at(lock_file, folder / LOCK):
            return lock_file
        # The previous holder removed the file meanwhile: a third process may have a new one.
        lock_file.close()


def unlock_folder(folder: Path, lock_file: IO[bytes]) -> None:
    """Let other processes write to a folder again, and remove the lock file.

    Args:
        folder: the folder.
        lock_file: the file that `lock_folder` returned.
    """
    if _is_at(lock_file, folder / LOCK):
        with suppress(OSError):
            (folder / LOCK).unlink()
    lock_file.close()


def _is_at(stream: IO[bytes], file: Path) -> bool:
    """Whether an open file is still the one of this path."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.lstat(file))
    except OSError:
        return False
