"""The paths of a demo's parts, and the record that marks a stage's folder as finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.io.files import write_whole

__all__ = ["STAGE_RECORD", "DemoPaths", "matching", "read_json", "stage_record", "write_json"]

STAGE_RECORD = "demo_stage.json"
"""The file in a checkpoint's or run's folder that says which recipe made it."""


@dataclass(frozen=True)
class DemoPaths:
    """The paths of a demo's parts."""

    folder: Path
    """The folder that holds everything."""
    base: Path
    """The base model's checkpoint folder."""
    ft: Path
    """The checkpoint folder of its fine-tune on maths."""
    probe_run: Path
    """The run folder of the same fine-tuning with a probe; `build_probe_run` writes it."""
    data: dict[str, dict[str, Path]]
    """Domain -> split -> held-out rows."""
    training: dict[str, Path]
    """Rows to train on: one file for each domain, and a `mixture` of all."""
    train: Path
    """The training rows of maths, under the name that README's examples use."""
    test: Path
    """The held-out test rows of maths, likewise."""
    unseen: dict[str, Path]
    """Domain -> rows that no training of the demo has seen, and that chose no setting."""


def stage_record(folder: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """Read the record of a finished stage.

    Args:
        folder: of the stage.
        identity: of the recipe.

    Returns:
        The record; None if there is none, or if another recipe or version made the stage.
    """
    return matching(read_json(folder / STAGE_RECORD), identity)


def matching(record: dict[str, Any] | None, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """Check which recipe and version a record belongs to.

    Args:
        record: of a stage or a demo, or None.
        identity: of the recipe.

    Returns:
        The record if it belongs to the recipe, else None.
    """
    return record if record is not None and identity.items() <= record.items() else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, whole or not at all.

    Args:
        path: of the file.
        content: the object.
    """
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read an object from a JSON file.

    Args:
        path: of the file.

    Returns:
        The object; None if there is no such file.

    Raises:
        DeltaLensError: the file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DeltaLensError(
            f"{path} is not JSON ({error}); remove it, and the demo writes it again"
        ) from error
    if not isinstance(content, dict):
        raise DeltaLensError(
            f"{path} holds no JSON object; remove it, and the demo writes it again"
        )
    return content
