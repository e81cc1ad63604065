"""The workers of a landscape scan: a live model that is moved from point to point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from deltalens.errors import FAULTS_SHOWN, DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.files import replacing
from deltalens.io.records import Measurement, Setting
from deltalens.numerics.workers import workers
from deltalens.scoring.differentiable import LossPart, loss_parts
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.ready_suite import ReadySuite
from deltalens.scoring.sentence_scoring import SentenceScoring
from deltalens.scoring.suite import Metrics
from deltalens.scoring.texts import Progress, StoredTexts
from deltalens.studies.executors import Report
from deltalens.studies.landscape.directions import StoredDirection, random_directions
from deltalens.studies.landscape.hessian import top_of_hessian
from deltalens.studies.landscape.models import HeldModels, StoredModels
from deltalens.studies.landscape.planes import Mark, Shape
from deltalens.studies.landscape.spec import ScanSpec
from deltalens.studies.moving import Direction
from deltalens.studies.slots import Slot, fixed_parameters
from deltalens.studies.weights import StoredWeights

__all__ = ["DIRECTIONS", "LandscapeRecipe", "LandscapeWorker"]

DIRECTIONS = "directions.safetensors"


@dataclass(frozen=True, kw_only=True)
class LandscapeRecipe:
    """Prepares the workers of a landscape scan (see `Recipe`)."""

    spec: ScanSpec
    models: HeldModels | StoredModels
    """The models that span the plane."""
    origin_name: str
    """The origin's name in the records."""
    texts: StoredTexts
    """In the study's folder, where the Hessian's eigenvectors are stored as well."""
    loss: LossPart | None
    """The caller's loss for the Hessian; None: that of the data."""
    keep_directions: bool
    """Hold the directions in memory, instead of computing them for every row and point."""
    plane: dict[str, Any] | None = None
    """The plane as recorded (`Shape.facts`); None: not known yet."""
    shares_threads = False

    @property
    def local_reason(self) -> str | None:
        """See `Recipe`."""
        return self.models.local_reason

    @property
    def device(self) -> torch.device:
        """See `Recipe`."""
        return self.models.device

    @property
    def paths(self) -> list[Path]:
        """See `Recipe`."""
        files = [file for checkpoint in self.models.checkpoints for file in checkpoint.files]
        return [*files, *self.spec.suite.paths, self.texts.folder]

    def prepare(self, watch: Progress) -> LandscapeWorker:
        """See `Recipe`."""
        return LandscapeWorker(self, watch)


class LandscapeWorker:
    """A live model that is moved to one point after the other (see `Worker`)."""

    def __init__(self, recipe: LandscapeRecipe, watch: Progress) -> None:
        self._recipe, models = recipe, recipe.models
        watch.stage("loading the model", None)
        self._loaded = loaded = models.load()
        self._live = models.live(loaded)
        slots = self._live.slots
        self._suite = ReadySuite(
            recipe.spec.suite, loaded, recipe.origin_name, recipe.texts, watch, "the origin"
        )
        self.notes = [*self._suite.notes]
        """Notes for the records."""
        if fixed := fixed_parameters(loaded.model):
            shown = ", ".join(fixed[:FAULTS_SHOWN]) + (", ..." if len(fixed) > FAULTS_SHOWN else "")
            self.notes.append(f"these parameters do not move: {shown}")
        self.tensors, self.entries = len(slots), sum(slot.size for slot in slots)
        directions: Sequence[Direction]
        if recipe.spec.plane == "random":
            self.shape, directions = self._random(slots)
        elif recipe.spec.plane == "hessian":
            self.shape, directions = self._hessian(slots, watch)
        else:
            assert recipe.plane is not None
            self.shape = Shape.of(recipe.plane)
            directions = self.shape.directions(models.weights, models.others)
        first = self.shape.marks[0]
        self._first = (first.a, first.b, first.name)
        self._live.span(directions, keep=recipe.keep_directions)

    def measure(self, setting: Setting, report: Report) -> dict[str, Metrics]:
        """Measure one point.

        Args:
            setting: the point.
            report: told of the progress.

        Returns:
            Data set -> metrics.
        """
        self._live.move(setting["a"], setting["b"])
        by_data = self._suite.measure_by_data(self._loaded.model, report)
        if (setting["a"], setting["b"], setting["mark"]) == self._first:
            metrics = {
                f"{data} {name}": measurement
                for data, measurements in by_data.items()
                for name, measurement in measurements.items()
            }
            self._suite.check_first(metrics, self._loaded.model)
        return _without_infinities(by_data)

    def close(self) -> None:
        """See `Worker`."""
        if vars(self):
            self._live.restore()
            vars(self).clear()

    def _loss(self) -> list[LossPart]:
        """The loss as differentiable parts."""
        if self._recipe.loss is not None:
            return [self._recipe.loss]
        suite, loaded = self._recipe.spec.suite, self._loaded
        scoring, *_ = self._suite.scorings or [
            suite.scoring(suite.files[0], loaded.model, loaded.tokenizer)
        ]
        # Preferences occur in studies of trainings only.
        assert isinstance(scoring, Scoring | SentenceScoring)
        return loss_parts(scoring)

    def _random(self, slots: Sequence[Slot]) -> tuple[Shape, Sequence[Direction]]:
        spec, models = self._recipe.spec, self._recipe.models
        axes = len(spec.counts)
        with workers(self._loaded.device) as mapper:
            directions = random_directions(
                models.weights, slots, axes, spec.seed, spec.normalize, mapper
            )
        labels = tuple(
            f"random direction {n}, normalized per {spec.normalize}" for n in range(1, axes + 1)
        )
        return _around_origin(models.names[0], labels, (1.0,) * axes, {}), directions

    def _hessian(self, slots: Sequence[Slot], watch: Progress) -> tuple[Shape, Sequence[Direction]]:
        spec, plane = self._recipe.spec, self._recipe.plane
        axes, file = len(spec.counts), self._recipe.texts.folder / DIRECTIONS
        if plane is not None and file.exists():
            shape = Shape.of(plane)
        else:
            watch.stage("products with the Hessian", None)
            values, vectors = top_of_hessian(
                self._loaded.model, slots, self._loss(), axes, spec.seed, watch.advance
            )
            _write_directions(file, vectors)
            # At this distance, a quadratic of the largest curvature has risen by 1.
            largest = max(abs(value) for value in values)
            reach = (2 / largest) ** 0.5 if largest else 1.0
            labels = tuple(
                f"eigenvector {number} (eigenvalue {value:.4g})"
                for number, value in enumerate(values, 1)
            )
            name = self._recipe.models.names[0]
            reaches = (float(f"{reach:.4g}"),) * axes
            shape = _around_origin(name, labels, reaches, {"eigenvalues": values})
        stored = StoredWeights.of(open_checkpoint(file))
        return shape, [StoredDirection(stored, f"{index}/") for index in range(axes)]


def _without_infinities(by_data: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """Replace infinities by NaN: no figure can show either as a height."""
    return {
        data: {
            name: m if math.isfinite(m.value) else Measurement(math.nan, math.nan, m.n)
            for name, m in metrics.items()
        }
        for data, metrics in by_data.items()
    }


def _around_origin(
    name: str,
    labels: tuple[str, ...],
    reaches: tuple[float, ...],
    statistics: dict[str, list[float]],
) -> Shape:
    mark = Mark(name, "origin", 0.0, 0.0, 0.0)
    return Shape(labels, (mark,), tuple((-r, r) for r in reaches), (), statistics)


def _write_directions(file: Path, vectors: Sequence[dict[str, Tensor]]) -> None:
    """Store eigenvectors for later calls, and so that they need not be held in memory."""
    tensors = {
        f"{index}/{name}": tensor.contiguous().clone()
        for index, vector in enumerate(vectors)
        for name, tensor in vector.items()
    }
    try:
        with replacing(file) as temporary:
            save_file(tensors, temporary)
    except SafetensorError as error:
        raise DeltaLensError(f"{file}: cannot be written: {error}") from error
