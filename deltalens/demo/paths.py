"""Where a demo's parts lie, and the record that says a stage's folder is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.io.files import write_whole

__all__ = ["STAGE_RECORD", "DemoPaths", "read_json", "same", "stage_record", "write_json"]

STAGE_RECORD = "demo_stage.json"
"""The file inside a checkpoint or run folder that says which recipe it was made by."""


@dataclass(frozen=True)
class DemoPaths:
    """Where a demo lies."""

    folder: Path
    """The folder that holds everything."""
    base: Path
    """The base model's checkpoint folder."""
    ft: Path
    """The checkpoint folder of its fine-tune on maths."""
    probe_run: Path
    """The run folder of the same fine-tuning with a probe attached; there once it is wanted."""
    data: dict[str, dict[str, Path]]
    """The held-out rows' files, by domain and split."""
    training: dict[str, Path]
    """Rows to train on: of each domain, and a `mixture` of all."""
    train: Path
    """Those of maths once more, by the name that README's examples use."""
    test: Path
    """The held-out rows of maths to test by, likewise."""
    unseen: dict[str, Path]
    """By domain, rows that no training here has seen and no setting was chosen by; likewise."""


def stage_record(folder: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """Read the record in a stage's folder.

    Args:
        folder: of the stage.
        identity: of the recipe and version.

    Returns:
        The record; None if there is none, or it was made by another recipe.
    """
    return same(read_json(folder / STAGE_RECORD), identity)


def same(record: dict[str, Any] | None, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """Check what a record was made by.

    Args:
        record: of a stage, if there is one.
        identity: of the recipe and version.

    Returns:
        The record; None if it was made by another recipe or version.
    """
    return record if record is not None and identity.items() <= record.items() else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object.

    Args:
        path: of the file.

    Returns:
        The object; None if there is no such file.

    Raises:
        DeltaLensError: the file holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DeltaLensError(f"{path} is not JSON ({error}); remove it to make it again") from error
    if not isinstance(content, dict):
        raise DeltaLensError(f"{path} holds no JSON object; remove it to make it again")
    return content
