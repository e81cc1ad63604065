"""One sitting of a landscape: from the loaded model to the last point."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from deltalens.errors import SHOWN, DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.files import replacing
from deltalens.io.records import Cell, Measurement, Setting, StudyFolder
from deltalens.numerics.workers import workers
from deltalens.scoring.differentiable import LossPart, loss_parts
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.suite import Metrics, ReadySuite
from deltalens.scoring.texts import KeptTexts
from deltalens.studies.engine import StudyWatch
from deltalens.studies.landscape.asked import Asked
from deltalens.studies.landscape.directions import StoredDirection, random_directions
from deltalens.studies.landscape.grid import GRID, Point, coarse_to_fine, grid_points
from deltalens.studies.landscape.hessian import top_of_hessian
from deltalens.studies.landscape.models import HeldModels, StoredModels
from deltalens.studies.landscape.planes import (
    Mark,
    Shape,
    axes_of,
    inner_products,
    line_through,
    plane_through,
    principal_plane,
)
from deltalens.studies.live import LiveTensors
from deltalens.studies.moving import Direction
from deltalens.studies.places import Slot, passed_over
from deltalens.studies.weights import StoredWeights

__all__ = ["KIND", "Sitting", "write_table"]

KIND = "landscape"
DIRECTIONS = "directions.safetensors"


class Stop(NamedTuple):
    """A point to be measured."""

    point: Point
    mark: str

    def setting(self, data: str) -> Setting:
        """Of its cell."""
        return {"a": self.point.a, "b": self.point.b, "mark": self.mark, "data": data}


class Sitting:
    """One sitting of a landscape.

    Args:
        asked: what, checked.
        models: that make the plane.
        folder: of the study, open.
        watch: told of stages, progress and finished cells.
        loss: of the caller's, or None.
        low_memory: hold no direction.
    """

    def __init__(
        self,
        asked: Asked,
        models: HeldModels | StoredModels,
        folder: StudyFolder,
        watch: StudyWatch,
        loss: LossPart | None,
        low_memory: bool,
    ) -> None:
        self.asked, self.models, self.folder, self.watch = asked, models, folder, watch
        self.loss, self.keep = loss, not low_memory
        if not folder.cells:
            plane = folder.facts.get("plane")
            folder.facts = models.facts() | ({"plane": plane} if plane else {})

    def run(self) -> None:
        """Measure what is left, and give the model its bits back."""
        if self._finished():
            write_table(self.folder, self.asked)
            return
        shape = self._shape_of_checkpoints()
        self.watch.stage("loading the model", None)
        loaded = self.models.load()
        live = self.models.live(loaded)
        slots = live.slots
        suite, parts = self._measures(loaded)
        facts = self.folder.facts
        if not self.folder.cells:
            facts["tensors"], facts["entries"] = len(slots), sum(slot.size for slot in slots)
            facts["notes"] += suite.notes
            if still := passed_over(loaded.model):
                shown = ", ".join(still[:SHOWN]) + (", ..." if len(still) > SHOWN else "")
                facts["notes"].append(f"these parameters do not move: {shown}")
        directions: Sequence[Direction]
        if shape is not None:
            directions = shape.directions(self.models.weights, self.models.others)
        elif self.asked.plane == "random":
            shape, directions = self._random(slots, loaded)
        else:
            shape, directions = self._hessian(slots, loaded, parts)
        facts["plane"] = shape.facts()
        facts["points"] = len(_stops(shape, self.asked))
        self.folder.write_manifest()
        try:
            with live:
                live.span(directions, keep=self.keep)
                self._visit(_stops(shape, self.asked), live, loaded, suite)
        finally:
            write_table(self.folder, self.asked)

    def _finished(self) -> bool:
        facts = self.folder.facts
        if not self.folder.cells or "data" not in facts:
            return False
        wanted = len(_stops(Shape.of(facts["plane"]), self.asked)) * len(facts["data"])
        return len(self.folder.cells) >= wanted

    def _visit(
        self, stops: Sequence[Stop], live: LiveTensors, loaded: LoadedModel, suite: ReadySuite
    ) -> None:
        done = {repr(cell.setting) for cell in self.folder.cells}
        known: list[str] = self.folder.facts.get("data", [])
        self.watch.stage("points", len(stops))
        for stop in stops:
            left = [name for name in known if repr(stop.setting(name)) not in done]
            if left or not known:
                begun = time.perf_counter()
                live.move(*stop.point)
                measured = suite.measure_by_data(loaded.model)
                if stop == stops[0]:
                    named = {f"{d} {n}": m for d, of in measured.items() for n, m in of.items()}
                    suite.check_first(named, loaded.model)
                found = _finite(measured)
                if not known:
                    known = list(found)
                    self.folder.facts["data"] = known
                    self.folder.write_manifest()
                if list(found) != known:
                    raise DeltaLensError(
                        f"the metric measured {', '.join(found)} here and {', '.join(known)} before"
                    )
                seconds = time.perf_counter() - begun
                cells = [
                    Cell(stop.setting(name), metrics, seconds)
                    for name, metrics in found.items()
                    if repr(stop.setting(name)) not in done
                ]
                # Together: a point is journalled with all its data or, if the line tears, redone.
                self.folder.extend(cells)
                for cell in cells:
                    self.watch.on_cell(self.folder.path, cell)
            self.watch.advance(1)

    def _measures(self, loaded: LoadedModel) -> tuple[ReadySuite, list[LossPart]]:
        """What is measured at every point; and the loss, in parts that can be differentiated."""
        texts = KeptTexts(self.folder.path, bool(self.folder.cells))
        where = self.folder.facts["models"][0]
        suite = ReadySuite(self.asked.suite, loaded, where, texts, self.watch, "the origin")
        if self.loss is not None or self.asked.plane != "hessian":
            return suite, [] if self.loss is None else [self.loss]
        scoring, *_ = suite.scorings or [
            self.asked.suite.scoring(self.asked.suite.files[0], loaded.model, loaded.tokenizer)
        ]
        assert isinstance(scoring, Scoring)  # No preferences: those are a training's.
        return suite, loss_parts(scoring)

    def _shape_of_checkpoints(self) -> Shape | None:
        """The line or plane between the checkpoints, if it is one; as the study has it already, so
        that a later sitting visits the very same points."""
        if self.asked.plane in ("random", "hessian"):
            return None
        if "plane" in self.folder.facts:
            return Shape.of(self.folder.facts["plane"])
        models, base = self.models, self.models.has_base
        self.watch.stage("measuring the distances between the models", None)
        with workers() as each:
            products = inner_products(models.sizes, models.weights, models.others, each)
        if self.asked.plane == "line":
            return line_through(products, models.names, base)
        if self.asked.plane == "checkpoints":
            return plane_through(products, models.names, base)
        return principal_plane(products, models.names, len(self.asked.counts), base)

    def _random(
        self, slots: Sequence[Slot], loaded: LoadedModel
    ) -> tuple[Shape, Sequence[Direction]]:
        asked, axes = self.asked, len(self.asked.counts)
        with workers(loaded.device) as each:
            directions = random_directions(
                self.models.weights, slots, axes, asked.seed, asked.normalise, each
            )
        labels = tuple(
            f"random direction {n}, normalised per {asked.normalise}" for n in range(1, axes + 1)
        )
        return _around_origin(self.models.names[0], labels, (1.0,) * axes, {}), directions

    def _hessian(
        self, slots: Sequence[Slot], loaded: LoadedModel, parts: Sequence[LossPart]
    ) -> tuple[Shape, Sequence[Direction]]:
        axes, file = len(self.asked.counts), self.folder.path / DIRECTIONS
        if "plane" in self.folder.facts and file.exists():
            shape = Shape.of(self.folder.facts["plane"])
        else:
            self.watch.stage("products with the Hessian", None)
            values, vectors = top_of_hessian(
                loaded.model, slots, parts, axes, self.asked.seed, self.watch.advance
            )
            _write_directions(file, vectors)
            # Where a quadratic of the largest curvature has risen by one.
            largest = max(abs(value) for value in values)
            reach = (2 / largest) ** 0.5 if largest else 1.0
            labels = tuple(
                f"eigenvector {place} (eigenvalue {value:.4g})"
                for place, value in enumerate(values, 1)
            )
            found = {"eigenvalues": values}
            name = self.models.names[0]
            shape = _around_origin(name, labels, (float(f"{reach:.4g}"),) * axes, found)
        stored = StoredWeights.of(open_checkpoint(file))
        return shape, [StoredDirection(stored, f"{place}/") for place in range(axes)]


def _finite(found: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """The same, with NaN for what is infinite: neither is a height."""
    return {
        data: {
            name: m if math.isfinite(m.value) else Measurement(math.nan, math.nan, m.n)
            for name, m in metrics.items()
        }
        for data, metrics in found.items()
    }


def _around_origin(
    name: str, labels: tuple[str, ...], reaches: tuple[float, ...], found: dict[str, list[float]]
) -> Shape:
    mark = Mark(name, "origin", 0.0, 0.0, 0.0)
    return Shape(labels, (mark,), tuple((-r, r) for r in reaches), (), found)


def _write_directions(file: Path, vectors: Sequence[dict[str, Tensor]]) -> None:
    """Kept for the next sitting, and so that they need not be held."""
    tensors = {
        f"{place}/{name}": tensor.contiguous().clone()
        for place, vector in enumerate(vectors)
        for name, tensor in vector.items()
    }
    try:
        with replacing(file) as temporary:
            save_file(tensors, temporary)
    except SafetensorError as error:
        raise DeltaLensError(f"{file}: cannot be written: {error}") from error


def _stops(shape: Shape, asked: Asked) -> list[Stop]:
    """The marked points, then the grid from coarse to fine."""
    axes = axes_of(asked.ranges or shape.ranges, asked.counts)
    return [
        *_marked(shape),
        *(Stop(point, GRID) for level in coarse_to_fine(axes) for point in level),
    ]


def _marked(shape: Shape) -> Iterator[Stop]:
    return (Stop(Point(mark.a, mark.b), mark.name) for mark in shape.marks)


def write_table(folder: StudyFolder, asked: Asked) -> None:
    """`cells.csv`: the marked points, then the grid row by row."""
    if "plane" not in folder.facts:
        return
    shape = Shape.of(folder.facts["plane"])
    axes = axes_of(asked.ranges or shape.ranges, asked.counts)
    stops = [*_marked(shape), *(Stop(point, GRID) for point in grid_points(axes))]
    known = folder.facts.get("data", [])
    folder.write_table([stop.setting(name) for stop in stops for name in known])
