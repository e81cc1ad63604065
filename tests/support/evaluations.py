"""Evaluations written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deltalens.io.records import Cell, Measurement, StudyFolder, StudyRecord, load_study

__all__ = ["Scored", "write_evaluation"]


class Scored(NamedTuple):
    """A model with its numbers."""

    model: str
    metrics: Mapping[str, Measurement]
    training: str = ""
    step: int = 0


def write_evaluation(
    folder: Path, models: list[Scored], tasks: tuple[str, ...] = (), **facts: Any
) -> StudyRecord:
    """A finished evaluation, in the order of the models."""
    spec = {"models": {model.model: {"weights": "1"} for model in models}, "data": []}
    if tasks:
        spec["tasks"] = {"tasks": {name: {} for name in tasks}, "groups": {}}
    columns = ("model", "training", "step")
    with StudyFolder.open(folder, "evaluate", spec, columns) as study:
        about = {"path": "m", "entries": 1, "dtype": "float32"}
        study.facts = {"models": {model.model: about for model in models}, "notes": [], **facts}
        study.write_manifest()
        cells = [
            Cell({name: getattr(model, name) for name in columns}, dict(model.metrics), 0.0)
            for model in models
        ]
        study.extend(cells)
        study.write_table([cell.setting for cell in cells])
    return load_study(folder)
