"""Sealing of folders that are resumed from later: a file that lists all others, with sizes and
checksums.

The seal is written last, once all files are on the disk. A folder without a seal is incomplete; one
that does not match its seal is damaged.
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
"""Name of the seal."""


def write_seal(folder: Path, about: Mapping[str, Any], name: str | None = None) -> None:
    """Flush a complete folder to the disk, and then seal it.

    Args:
        folder: the folder; all of its files have been written.
        about: further information to store in the seal, as JSON values.
        name: the name that the folder will have, if it is going to be renamed.

    Raises:
        RecordError: the folder contains something other than regular files and folders.
        OSError: it cannot be read, or not be written to the disk.
    """
    names = sorted(_names(folder))
    for file in names:
        with (folder / file).open("rb") as stream:
            sync(stream.fileno())
    files = {file: list(checksum_of_file(folder / file)) for file in names}
    record = {"format": FORMAT, "name": name or folder.name, "files": files, "about": {**about}}
    write_whole(folder / SEAL, json.dumps(sealed(record), indent=2).encode())
    sync_folder(folder)
    sync_folder(folder.parent)


def check_seal(folder: Path) -> dict[str, Any]:
    """Verify that a folder is complete and undamaged.

    Args:
        folder: the folder.

    Returns:
        The further information that `write_seal` stored.

    Raises:
        RecordError: it is not; the message names the file.
    """
    try:
        record = parse_sealed(folder / SEAL, read_plain(folder / SEAL))
        if record["format"] != FORMAT or record["name"] != folder.name:
            raise ValueError(f"the seal of {record['name']}, format {record['format']}")
        listed, present = dict(record["files"]), {*_names(folder)}
        for name in sorted(listed.keys() | present):
            if name not in present:
                raise RecordError(f"{folder / name}: missing")
            if name not in listed:
                raise RecordError(f"{folder / name}: not a file that was written with the others")
            check_file(folder / name, listed[name])
        return dict(record["about"])
    except OSError as error:
        raise RecordError(f"{folder}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{folder / SEAL}: damaged: {describe_error(error)}") from error


def check_file(file: Path, extent: Any) -> None:
    """Refuse a file that has changed since it was sealed.

    Args:
        file: a regular file.
        extent: its size in bytes and its checksum, as read from the seal.

    Raises:
        RecordError: size or checksum differ.
        OSError: the file cannot be read.
    """
    size, digest = extent
    if file.lstat().st_size != size or checksum_of_file(file) != (size, digest):
        raise RecordError(f"{file}: damaged: changed since it was written")


def _names(folder: Path) -> Iterator[str]:
    """The names of all files below a folder, relative to it; the seal is left out."""
    for file in _regular_files(folder):
        name = file.relative_to(folder).as_posix()
        if name != SEAL and not is_temporary(file.name):
            yield name


def _regular_files(folder: Path) -> Iterator[Path]:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise RecordError(f"{folder}: a link, file, pipe or device instead of a folder; remove it")
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield from _regular_files(path)
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise RecordError(f"{path}: a link, pipe or device; remove it")
