"""The work of one invocation of a landscape scan: determine the plane, prepare workers, and measure
every point that is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from deltalens.errors import DeltaLensError
from deltalens.io.records import Setting, StudyFolder
from deltalens.numerics.workers import workers
from deltalens.scoring.differentiable import LossPart
from deltalens.scoring.suite import Metrics
from deltalens.scoring.texts import StoredTexts
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
from deltalens.studies.measuring import Measuring

__all__ = ["KIND", "measure_points"]

KIND = "landscape"


class _MarkedPoint(NamedTuple):
    """A point to be measured, with its mark: the name of a model, or `GRID`."""

    point: Point
    mark: str

    @property
    def setting(self) -> Setting:
        """The settings that its cells have in common."""
        return {"a": self.point.a, "b": self.point.b, "mark": self.mark}


def measure_points(
    spec: ScanSpec,
    models: HeldModels | StoredModels,
    folder: StudyFolder,
    measuring: Measuring,
    *,
    loss: LossPart | None,
    low_memory: bool,
) -> None:
    """Measure every point that is left.

    Args:
        spec: the study's specification.
        models: the models that span the plane.
        folder: the study's folder, open for writing.
        measuring: by how many workers, and whom to tell of progress.
        loss: the caller's loss for the Hessian; None: that of the data.
        low_memory: compute directions again for every row and point, instead of holding them.

    Raises:
        DeltaLensError: the models span no plane, the loss cannot be measured, or a worker failed.
    """
    if _finished(folder, spec):
        _write_table(folder, spec)
        return
    facts, watch = folder.facts, measuring.watch
    plane = facts.get("plane")
    if plane is None and spec.plane not in ("random", "hessian"):
        plane = _plane_of_checkpoints(spec, models, watch).facts()
    recipe = LandscapeRecipe(
        spec=spec,
        models=models,
        origin_name=facts["models"][0],
        texts=StoredTexts(folder.path, reuse=bool(folder.cells)),
        loss=loss,
        keep_directions=not low_memory,
        plane=plane,
    )
    with measuring.execution.on_first_device():
        _measure(recipe, spec, folder, measuring)


def _measure(
    recipe: LandscapeRecipe, spec: ScanSpec, folder: StudyFolder, measuring: Measuring
) -> None:
    facts, watch = folder.facts, measuring.watch
    worker = recipe.prepare(watch)
    try:
        if not folder.cells:
            facts |= {"tensors": worker.tensors, "entries": worker.entries}
            facts["notes"] += worker.notes
        facts["plane"] = worker.shape.facts()
        points = _points(worker.shape, spec)
        facts["points"] = len(points)
        folder.write_manifest()
        journal = _Journal(folder)
        remote = replace(
            recipe,
            plane=facts["plane"],
            texts=StoredTexts(folder.path, reuse=True),
            # No longer needed: the plane is known.
            loss=None,
        )
        run_cells(
            folder,
            [point.setting for point in points],
            remote,
            worker,
            watch,
            cells_of=journal.cells_of,
            is_done=journal.is_done,
            write_table=lambda: _write_table(folder, spec),
            unit="points",
            execution=measuring.execution,
            tasks=spec.suite.tasks,
        )
    finally:
        worker.close()


class _Journal:
    """The cells of each point: one per data set. Which data sets there are is known as soon as one
    point is measured."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self._done = {repr(cell.setting) for cell in folder.cells}
        self._data: list[str] = folder.facts.get("data", [])

    def is_done(self, setting: Setting) -> bool:
        """Whether nothing is left to measure at a point."""
        done = (repr({**setting, "data": name}) in self._done for name in self._data)
        return bool(self._data) and all(done)

    def cells_of(
        self, setting: Setting, measured: Mapping[str, Metrics]
    ) -> Sequence[tuple[Setting, Metrics]]:
        """The cells of a point that are not journalled yet.

        Raises:
            DeltaLensError: the data sets are not those of earlier points.
        """
        if not self._data:
            self._data = self._folder.facts["data"] = [*measured]
            self._folder.write_manifest()
        if [*measured] != self._data:
            raise DeltaLensError(
                f"the metric measured {', '.join(measured)} at this point, and "
                f"{', '.join(self._data)} at earlier ones"
            )
        cells = [({**setting, "data": name}, metrics) for name, metrics in measured.items()]
        return [cell for cell in cells if repr(cell[0]) not in self._done]


def _finished(folder: StudyFolder, spec: ScanSpec) -> bool:
    facts = folder.facts
    if not folder.cells or "data" not in facts:
        return False
    cells = len(_points(Shape.of(facts["plane"]), spec)) * len(facts["data"])
    return len(folder.cells) >= cells


def _plane_of_checkpoints(
    spec: ScanSpec, models: HeldModels | StoredModels, watch: StudyWatch
) -> Shape:
    """Compute the line or plane that the checkpoints span."""
    base = models.has_base
    watch.stage("measuring the distances between the models", None)
    with workers() as mapper:
        products = inner_products(models.sizes, models.weights, models.others, mapper)
    if spec.plane == "line":
        return line_through(products, models.names, base)
    if spec.plane == "checkpoints":
        return plane_through(products, models.names, base)
    return principal_plane(products, models.names, len(spec.counts), base)


def _points(shape: Shape, spec: ScanSpec) -> list[_MarkedPoint]:
    """The positions of models, then the grid from coarse to fine."""
    axes = axes_of(spec.ranges or shape.ranges, spec.counts)
    return [
        *_models(shape),
        *(_MarkedPoint(point, GRID) for level in coarse_to_fine(axes) for point in level),
    ]


def _models(shape: Shape) -> Iterator[_MarkedPoint]:
    return (_MarkedPoint(Point(mark.a, mark.b), mark.name) for mark in shape.marks)


def _write_table(folder: StudyFolder, spec: ScanSpec) -> None:
    """Write `cells.csv`: the positions of models, then the grid row by row."""
    if "plane" not in folder.facts:
        return
    shape = Shape.of(folder.facts["plane"])
    axes = axes_of(spec.ranges or shape.ranges, spec.counts)
    points = [*_models(shape), *(_MarkedPoint(point, GRID) for point in grid_points(axes))]
    data = folder.facts.get("data", [])
    folder.write_table([{**point.setting, "data": name} for point in points for name in data])
