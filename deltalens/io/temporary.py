"""Temporary names under which files and folders are written before they are renamed.

Each names the machine and the process that writes it, so that remains of killed processes can be
recognized and removed.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

__all__ = ["TEMPORARY_NAME", "is_temporary", "remove_stale", "temporary_name"]

_HOST = f"{zlib.crc32(os.uname().nodename.encode()):08x}"
TEMPORARY_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[^.]*\.part")


def temporary_name(path: Path) -> Path:
    """Choose a temporary name for a file or folder.

    Args:
        path: the final path.

    Returns:
        An unused hidden name in the same folder, which identifies this process.
    """
    owner = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{owner}.part")


def is_temporary(name: str, of: str | None = None) -> bool:
    """Tell whether a file's name is a temporary one.

    Args:
        name: the file's name, without its folder.
        of: the final name that it should belong to; None: any.

    Returns:
        True if `temporary_name` may have returned it.
    """
    match = TEMPORARY_NAME.fullmatch(name)
    return match is not None and of in (None, match["name"])


def remove_stale(path: Path) -> None:
    """Remove temporary files and folders that dead processes of this machine left behind.

    Args:
        path: the final path that they were written for.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        match = TEMPORARY_NAME.fullmatch(leftover.name)
        if match is None or match["name"] != path.name or match["host"] != _HOST:
            continue
        if _is_running(int(match["process"])):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
