"""The JSON file that says what a folder of records is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.files import read_plain
from deltalens.io.version import FORMAT, version

__all__ = ["read_manifest"]


def read_manifest(folder: Path, name: str, what: str) -> dict[str, Any]:
    """The manifest of a folder.

    Args:
        folder: of a study or a run.
        name: of the file.
        what: the folder should be, for the message.

    Raises:
        RecordError: there is none, or it is not valid JSON, or of a format that this version does
            not know.
    """
    file = folder / name
    try:
        manifest = json.loads(read_plain(file).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"{folder}: no {what} here (no {name})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{file}: not valid JSON: {error}") from error
    held = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or held != FORMAT:
        raise RecordError(f"{file}: format {held!r}; this deltalens ({version()}) reads {FORMAT}")
    return manifest
