"""Folders that are gone on from later: a file in them lists every other, with size and checksum.

It is written last, when all of them are on the disk: a folder without it was cut short, and one
that is not what it lists is damaged.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError, describe_error
from deltalens.io.checksum import checksum_of_file, parse_sealed, sealed
from deltalens.io.files import read_plain, sync_folder, write_whole
from deltalens.io.platform import sync
from deltalens.io.temporary import is_temporary
from deltalens.io.version import FORMAT

__all__ = ["SEAL", "check_file", "check_seal", "write_seal"]

SEAL = "deltalens-complete"
"""The file that lists the others."""


def write_seal(folder: Path, about: Mapping[str, Any], name: str | None = None) -> None:
    """Bring a folder to the disk, and then call it whole.

    Args:
        folder: everything in it is written.
        about: what else is to be known of it, as JSON values.
        name: that it will have, if it is another one.

    Raises:
        RecordError: there is something else in it than files and folders.
        OSError: it cannot be read, or brought to the disk.
    """
    names = sorted(_names(folder))
    for file in names:
        with (folder / file).open("rb") as stream:
            sync(stream.fileno())
    files = {file: list(checksum_of_file(folder / file)) for file in names}
    known = {"format": FORMAT, "name": name or folder.name, "files": files, "about": {**about}}
    write_whole(folder / SEAL, json.dumps(sealed(known), indent=2).encode())
    sync_folder(folder)
    sync_folder(folder.parent)


def check_seal(folder: Path) -> dict[str, Any]:
    """What is known of a folder that is what was written.

    Raises:
        RecordError: it is not; names the file.
    """
    try:
        record = parse_sealed(folder / SEAL, read_plain(folder / SEAL))
        if record["format"] != FORMAT or record["name"] != folder.name:
            raise ValueError(f"the seal of {record['name']}, format {record['format']}")
        known, there = dict(record["files"]), {*_names(folder)}
        for name in sorted(known.keys() | there):
            if name not in there:
                raise RecordError(f"{folder / name}: missing")
            if name not in known:
                raise RecordError(f"{folder / name}: no part of what was written")
            check_file(folder / name, known[name])
        return dict(record["about"])
    except OSError as error:
        raise RecordError(f"{folder}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{folder / SEAL}: damaged: {describe_error(error)}") from error


def check_file(file: Path, known: Any) -> None:
    """Refuse a file that is not what was written.

    Args:
        file: a plain one.
        known: its size and checksum.

    Raises:
        RecordError: it is another one.
        OSError: it cannot be read.
    """
    size, digest = known
    if file.lstat().st_size != size or checksum_of_file(file) != (size, digest):
        raise RecordError(f"{file}: damaged: not what was written")


def _names(folder: Path) -> Iterator[str]:
    """All files below a folder but the seal, by their names in it."""
    for found in _plain_files(folder):
        name = found.relative_to(folder).as_posix()
        if name != SEAL and not is_temporary(found.name):
            yield name


def _plain_files(folder: Path) -> Iterator[Path]:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise RecordError(f"{folder}: a link, file, pipe or device, and no folder; remove it")
    for found in folder.iterdir():
        mode = found.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield from _plain_files(found)
        elif stat.S_ISREG(mode):
            yield found
        else:
            raise RecordError(f"{found}: a link, pipe or device; remove it")
