"""What one invocation of a landscape does: it finds the plane, prepares a worker, and has it, or
others like it, measure every point that is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from deltalens.errors import DeltaLensError
from deltalens.io.records import Setting, StudyFolder
from deltalens.numerics.workers import workers
from deltalens.scoring.differentiable import LossPart
from deltalens.scoring.suite import Metrics
from deltalens.scoring.texts import KeptTexts
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.landscape.grid import GRID, Point, coarse_to_fine, grid_points
from deltalens.studies.landscape.models import HeldModels, StoredModels
from deltalens.studies.landscape.planes import (
    Shape,
    axes_of,
    inner_products,
    line_through,
    plane_through,
    principal_plane,
)
from deltalens.studies.landscape.spec import ScanSpec
from deltalens.studies.landscape.worker import LandscapeRecipe

__all__ = ["KIND", "measure_points"]

KIND = "landscape"


class Stop(NamedTuple):
    """A point to be measured."""

    point: Point
    mark: str

    @property
    def setting(self) -> Setting:
        """What its cells have in common."""
        return {"a": self.point.a, "b": self.point.b, "mark": self.mark}


def measure_points(
    spec: ScanSpec,
    models: HeldModels | StoredModels,
    folder: StudyFolder,
    watch: StudyWatch,
    *,
    loss: LossPart | None,
    low_memory: bool,
    jobs: int,
    executor: str | None,
) -> None:
    """Measure every point that is left.

    Args:
        spec: what, checked.
        models: that make the plane.
        folder: of the study, open.
        watch: told of stages, progress and finished cells.
        loss: of the caller's, or None.
        low_memory: hold no direction.
        jobs, executor: as `run_cells` takes them.
    """
    if _finished(folder, spec):
        _write_table(folder, spec)
        return
    facts = folder.facts
    plane = facts.get("plane")
    if plane is None and spec.plane not in ("random", "hessian"):
        plane = _plane_of_checkpoints(spec, models, watch).facts()
    recipe = LandscapeRecipe(
        spec=spec,
        models=models,
        called=facts["models"][0],
        texts=KeptTexts(folder.path, again=bool(folder.cells)),
        loss=loss,
        keep=not low_memory,
        plane=plane,
    )
    worker = recipe.prepare(watch)
    try:
        if not folder.cells:
            facts |= {"tensors": worker.tensors, "entries": worker.entries}
            facts["notes"] += worker.notes
        facts["plane"] = worker.shape.facts()
        stops = _stops(worker.shape, spec)
        facts["points"] = len(stops)
        folder.write_manifest()
        journal = _Journal(folder)
        elsewhere = replace(
            recipe,
            plane=facts["plane"],
            texts=KeptTexts(folder.path, again=True),
            # Its one use is over: in the plane.
            loss=None,
        )
        run_cells(
            folder,
            [stop.setting for stop in stops],
            elsewhere,
            worker,
            watch,
            cells_of=journal.cells_of,
            is_done=journal.is_done,
            write_table=lambda: _write_table(folder, spec),
            called="points",
            jobs=jobs,
            executor=executor,
        )
    finally:
        worker.close()


class _Journal:
    """Which cells a point is: one of every data set, all of them known once one is measured."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self._done = {repr(cell.setting) for cell in folder.cells}
        self._known: list[str] = folder.facts.get("data", [])

    def is_done(self, setting: Setting) -> bool:
        """Whether nothing is left to measure there."""
        every = (repr({**setting, "data": name}) in self._done for name in self._known)
        return bool(self._known) and all(every)

    def cells_of(
        self, setting: Setting, found: Mapping[str, Metrics]
    ) -> Sequence[tuple[Setting, Metrics]]:
        """The cells of a point that are not journalled.

        Raises:
            DeltaLensError: other data sets than before were measured.
        """
        if not self._known:
            self._known = self._folder.facts["data"] = [*found]
            self._folder.write_manifest()
        if [*found] != self._known:
            raise DeltaLensError(
                f"the metric measured {', '.join(found)} here and {', '.join(self._known)} before"
            )
        cells = [({**setting, "data": name}, metrics) for name, metrics in found.items()]
        return [cell for cell in cells if repr(cell[0]) not in self._done]


def _finished(folder: StudyFolder, spec: ScanSpec) -> bool:
    facts = folder.facts
    if not folder.cells or "data" not in facts:
        return False
    wanted = len(_stops(Shape.of(facts["plane"]), spec)) * len(facts["data"])
    return len(folder.cells) >= wanted


def _plane_of_checkpoints(
    spec: ScanSpec, models: HeldModels | StoredModels, watch: StudyWatch
) -> Shape:
    """The line or plane between the checkpoints."""
    base = models.has_base
    watch.stage("measuring the distances between the models", None)
    with workers() as mapper:
        products = inner_products(models.sizes, models.weights, models.others, mapper)
    if spec.plane == "line":
        return line_through(products, models.names, base)
    if spec.plane == "checkpoints":
        return plane_through(products, models.names, base)
    return principal_plane(products, models.names, len(spec.counts), base)


def _stops(shape: Shape, spec: ScanSpec) -> list[Stop]:
    """The marked points, then the grid from coarse to fine."""
    axes = axes_of(spec.ranges or shape.ranges, spec.counts)
    return [
        *_marked(shape),
        *(Stop(point, GRID) for level in coarse_to_fine(axes) for point in level),
    ]


def _marked(shape: Shape) -> Iterator[Stop]:
    return (Stop(Point(mark.a, mark.b), mark.name) for mark in shape.marks)


def _write_table(folder: StudyFolder, spec: ScanSpec) -> None:
    """`cells.csv`: the marked points, then the grid row by row."""
    if "plane" not in folder.facts:
        return
    shape = Shape.of(folder.facts["plane"])
    axes = axes_of(spec.ranges or shape.ranges, spec.counts)
    stops = [*_marked(shape), *(Stop(point, GRID) for point in grid_points(axes))]
    known = folder.facts.get("data", [])
    folder.write_table([{**stop.setting, "data": name} for stop in stops for name in known])
