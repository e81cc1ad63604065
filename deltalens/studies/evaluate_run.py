"""The work of one invocation of an evaluation: load each model that is left, and measure it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltalens.io.checkpoint import Checkpoint
from deltalens.io.records import Setting, StudyFolder
from deltalens.scoring.loading import Loading
from deltalens.scoring.ready_suite import ReadySuite
from deltalens.scoring.suite import Metrics, Suite
from deltalens.scoring.texts import Progress
from deltalens.studies.engine import run_cells
from deltalens.studies.executors import Report
from deltalens.studies.measuring import Measuring
from deltalens.studies.paired import at_work

__all__ = ["EvaluateRecipe", "EvaluateWorker", "EvaluatedModel", "measure_models"]


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model of the study."""

    name: str
    """In the records."""
    checkpoint: Checkpoint
    loading: Loading
    setting: Setting
    """Of its cell."""

    @property
    def entries(self) -> int:
        """Number of stored parameters."""
        return sum(entry.numel for entry in self.checkpoint.tensors.values())

    def facts(self) -> dict[str, Any]:
        """Describe the model for the records.

        Returns:
            JSON values by name.
        """
        dtype = str(self.loading.dtype).removeprefix("torch.")
        return {"path": str(self.checkpoint.path), "entries": self.entries, "dtype": dtype}


@dataclass(frozen=True)
class _Measured:
    """What was measured of a model."""

    metrics: Metrics
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """Prepares the workers of an evaluation (see `Recipe`)."""

    models: Mapping[str, EvaluatedModel]
    suite: Suite
    local_reason = None
    shares_threads = False

    @property
    def device(self) -> torch.device:
        """See `Recipe`."""
        return next(iter(self.models.values())).loading.device

    @property
    def paths(self) -> list[Path]:
        """See `Recipe`."""
        files = (file for model in self.models.values() for file in model.checkpoint.files)
        return [*files, *self.suite.paths]

    def prepare(self, watch: Progress) -> EvaluateWorker:
        """See `Recipe`."""
        return EvaluateWorker(self)


class EvaluateWorker:
    """Loads one model after the other (see `Worker`); between two cells it holds none."""

    def __init__(self, recipe: EvaluateRecipe) -> None:
        self._recipe = recipe
        self.notes: list[str] = []
        """Those of the study; of a model they come with its numbers."""

    def measure(self, setting: Setting, report: Report) -> _Measured:
        """See `Worker`."""
        model = self._recipe.models[setting["model"]]
        loaded = model.loading.load(model.checkpoint)
        suite = ReadySuite(self._recipe.suite, loaded, label=model.name)
        metrics = suite.measure(loaded.model, report)
        notes = list(suite.notes)
        if gaps := [name for name, each in metrics.items() if not math.isfinite(each.value)]:
            notes.append(f"not finite: {', '.join(gaps)}")
        return _Measured(metrics, tuple(notes))

    def close(self) -> None:
        """See `Worker`."""


def measure_models(
    models: Sequence[EvaluatedModel],
    order: Sequence[Setting],
    suite: Suite,
    folder: StudyFolder,
    measuring: Measuring,
) -> None:
    """Measure every model that is left.

    Args:
        models: those of this call.
        order: the settings of the table's rows, models of earlier calls included.
        suite: what is measured.
        folder: the study's folder, open for writing.
        measuring: by how many workers, and whom to tell of progress.

    Raises:
        DeltaLensError: no model can be loaded and measured, or a worker failed.
    """

    facts, names = folder.facts, [setting["model"] for setting in order]
    notes_of: dict[str, list[str]] = facts.setdefault("notes_of", {})

    def cells_of(setting: Setting, measured: _Measured) -> Sequence[tuple[Setting, Metrics]]:
        others = [note for note in facts["notes"] if note not in _said(notes_of, names)]
        notes_of[setting["model"]] = [*measured.notes]
        facts["notes_of"] = dict(sorted(notes_of.items()))
        facts["notes"] = [*others, *_said(notes_of, names)]
        folder.write_manifest()
        return [(setting, measured.metrics)]

    identities: Mapping[str, Any] = folder.spec["models"]
    recipe = EvaluateRecipe(models={model.name: model for model in models}, suite=suite)
    with at_work(recipe, folder, measuring) as worker:
        run_cells(
            folder,
            [model.setting for model in models],
            recipe,
            worker,
            measuring.watch,
            point_of=lambda setting: repr(identities[setting["model"]]),
            cells_of=cells_of,
            write_table=lambda: folder.write_table(order),
            reference=False,
            unit="models",
            execution=measuring.execution,
            tasks=suite.tasks,
        )


def _said(notes_of: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    """The notes for a reader: what is so of every model once, all else with its models' names."""
    models_of: dict[str, list[str]] = {}
    for name in names:
        for note in notes_of.get(name, ()):
            models_of.setdefault(note, []).append(name)
    return [
        note if len(models) == len(notes_of) > 1 else f"{', '.join(models)}: {note}"
        for note, models in models_of.items()
    ]
