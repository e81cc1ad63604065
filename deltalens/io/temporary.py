"""Names under which files and folders are written before they take their place; each says which
process of which machine it is of, so that what a killed one left is known and removed."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

__all__ = ["is_temporary", "remove_stale", "temporary_name"]

_HOST = f"{zlib.crc32(os.uname().nodename.encode()):08x}"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[^.]*\.part")


def temporary_name(place: Path) -> Path:
    """A name that nothing bears, beside a file or folder; it says whose it is."""
    owner = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    return place.with_name(f".{place.name}.{owner}.part")


def is_temporary(name: str, of: str | None = None) -> bool:
    """Whether a file's name is one under which something was being written (`of` names what)."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and of in (None, found["name"])


def remove_stale(place: Path) -> None:
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
