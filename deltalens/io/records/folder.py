"""The JSON file that says what a folder of records is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.checksum import check_sealed, sealed
from deltalens.io.files import read_plain, write_whole
from deltalens.io.plain_json import parse_json
from deltalens.io.version import FORMAT, FORMATS, has_checksums, version

__all__ = ["read_manifest", "write_manifest"]


def read_manifest(folder: Path, name: str, what: str) -> dict[str, Any]:
    """The manifest of a folder.

    Args:
        folder: of a study or a run.
        name: of the file.
        what: the folder should be, for the message.

    Raises:
        RecordError: there is none, or it is damaged, or of a format that this version does not
            know.
    """
    file = folder / name
    try:
        manifest = parse_json(file, read_plain(file))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"{folder}: no {what} here (no {name})") from error
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
    held = manifest.get("format") if isinstance(manifest, dict) else None
    if type(held) is not int or held not in FORMATS:
        known, shown = " and ".join(map(str, FORMATS)), repr(held)[:40]
        raise RecordError(f"{file}: format {shown}; this deltalens ({version()}) reads {known}")
    check_sealed(file, manifest, has_checksums(held))
    found: dict[str, Any] = manifest
    return found


def write_manifest(file: Path, fields: Mapping[str, Any]) -> None:
    """Write a manifest, sealed, with the format and the version.

    Args:
        file: of the folder.
        fields: what it says beside these, as JSON values.
    """
    record = sealed({"format": FORMAT, "deltalens": version(), **fields})
    write_whole(file, (json.dumps(record, indent=2) + "\n").encode())
