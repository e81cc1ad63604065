"""What a loss landscape shows: its models, its best point, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import Better, better_of, is_lower_better, is_worse, no_direction
from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table, is_finite
from deltalens.reports.wording import number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Barrier", "DataSummary", "LandscapeSummary", "summarize_landscape"]

_GRID = "grid"


@dataclass(frozen=True)
class Barrier:
    """The rise of the loss above the straight line between two models' losses."""

    height: float
    """The largest rise; 0 if there is none (Entezari et al. 2022, definition 1)."""
    at: float
    """Its position as a share of the way from the origin to B."""
    gaps: int = 0
    """Points between the two that are left out because their value is not finite."""


@dataclass(frozen=True)
class DataSummary:
    """One data set's leading metric over the plane."""

    data: str
    metric: str
    better: Better | None
    """Whether higher or lower values are better; None if unknown: then no point is the best."""
    marks: dict[str, float]
    """Marked model -> the metric there."""
    best: float
    """The best value on the grid."""
    best_at: tuple[float, float]
    """Its coordinates (a, b)."""
    nearest: str | None
    """The marked model nearest to that point."""
    nearest_distance: float
    barrier: Barrier | None
    """On a line between two models; None on a plane."""
    best_mark: str | None
    """The best of the marked models that span the plane; the base is not among them."""

    @property
    def name(self) -> str:
        """The metric with its data set in front."""
        return f"{self.data} {self.metric}" if self.data != "-" else self.metric

    @property
    def best_mark_wins(self) -> bool:
        """Whether the best marked model is better than every point of the grid."""
        if self.better is None or self.best_mark is None:
            return False
        return is_worse(self.best, self.marks[self.best_mark], self.better)


@dataclass(frozen=True)
class LandscapeSummary:
    """A landscape in numbers and sentences."""

    record: StudyRecord
    data: tuple[DataSummary, ...]
    done: int
    """Number of measured points."""
    gaps: int
    """Number of points at which a metric is NaN or infinite."""

    def sentences(self) -> Iterator[str]:
        """Say which model is best, where the best grid point lies, and what is between the models.

        Returns:
            Sentences, as a person reads them.
        """
        plane = self._plane
        for data in self.data:
            yield from self._sentences_of(data)
        if len([data for data in self.data if data.best_mark]) > 1:
            yield self._agreement()
        for mark in plane["marks"]:
            if mark["distance"] > 1e-6:
                yield (
                    f"{mark['name']} lies {number(mark['distance'])} off the plane and is shown "
                    "projected onto it"
                )
        facts = plane["found"]
        if "eigenvalues" in facts:
            yield f"largest eigenvalues: {', '.join(number(v) for v in facts['eigenvalues'])}"
        if "explained" in facts:
            share = 100 * sum(facts["explained"])
            yield f"the axes explain {share:.1f} % of the variance along the trajectory"
        if self.done < self.record.facts["points"]:
            yield f"{self.done} of {self.record.facts['points']} points are measured"
        if self.gaps:
            yield f"{self.gaps} points have no finite value: they are gaps in the picture"

    def _sentences_of(self, data: DataSummary) -> Iterator[str]:
        name = data.name
        values = ", ".join(f"{mark} {number(value)}" for mark, value in data.marks.items())
        best = f"; best: {data.best_mark}" if len(data.marks) > 1 and data.best_mark else ""
        yield f"{name}: {values}{best}"
        if data.better is None:
            yield no_direction(data.metric, name)
            return
        gaps = [mark for mark, value in data.marks.items() if not math.isfinite(value)]
        if gaps:
            yield f"values of {name} that are not finite are left out: {', '.join(gaps)}"
        if not math.isnan(data.best):
            a, b = (number(x) for x in data.best_at)
            where = f"({a}, {b})" if len(self._plane["labels"]) > 1 else a
            yield (
                f"{name}: {number(data.best)} at the best grid point {where}, "
                f"{number(data.nearest_distance)} from {data.nearest}"
                + (f"; {data.best_mark} itself is better" if data.best_mark_wins else "")
            )
        if data.barrier is not None:
            yield f"{name}: {_barrier_in_words(data.barrier)}"

    def _agreement(self) -> str:
        best = {data.data: data.best_mark for data in self.data if data.best_mark}
        if len(set(best.values())) == 1:
            where = "all data" if len(best) == len(self.data) else ", ".join(best)
            return f"{next(iter(best.values()))} is best on {where}"
        return "the data sets disagree: " + ", ".join(
            f"{model} is best on {data}" for data, model in best.items()
        )

    @property
    def _plane(self) -> dict[str, Any]:
        plane: dict[str, Any] = self.record.facts["plane"]
        return plane

    def tables(self) -> list[Table]:
        """Show the marked models: their coordinates, and every metric there.

        Returns:
            A table for each data set.
        """
        tables = []
        for data, frame in self.record.cells.groupby("data", sort=False):
            marked = frame[frame["mark"] != _GRID]
            metrics = list(dict.fromkeys(marked["metric"]))
            values = {
                (mark, metric): value
                for mark, metric, value in zip(
                    marked["mark"], marked["metric"], marked["value"], strict=True
                )
            }
            rows = tuple(
                (
                    mark["name"],
                    number(mark["a"]),
                    number(mark["b"]),
                    *(number(values.get((mark["name"], m), math.nan)) for m in metrics),
                )
                for mark in self._plane["marks"]
            )
            title = "" if data == "-" else str(data)
            tables.append(Table(title, ("model", "a", "b", *metrics), rows))
        return tables

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            JSON values; numbers may be NaN.
        """
        return {
            "study": str(self.record.path),
            "plane": self.record.spec["plane"],
            "points": self.record.facts["points"],
            "measured": self.done,
            "gaps": self.gaps,
            "marks": self._plane["marks"],
            **self._plane["found"],
            "data": {
                data.data: {
                    "metric": data.metric,
                    "better": data.better,
                    "marks": data.marks,
                    "best_mark": data.best_mark,
                    "best_mark_beats_grid": data.best_mark_wins,
                    "best": data.best,
                    "best_at": list(data.best_at),
                    "nearest": data.nearest,
                    "nearest_distance": data.nearest_distance,
                    "barrier": None if data.barrier is None else vars(data.barrier),
                }
                for data in self.data
            },
            "notes": self.record.facts.get("notes", []),
        }


def summarize_landscape(record: StudyRecord) -> LandscapeSummary:
    """Summarize a landscape, finished or not.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: it is another kind of study, or none of its points is finished.
    """
    if record.kind != "landscape" or record.cells.empty:
        raise RecordError(f"{record.path}: no landscape with finished points")
    cells = record.cells
    point = ["a", "b", "mark"]
    return LandscapeSummary(
        record,
        tuple(_data_summary(record, str(data)) for data in dict.fromkeys(cells["data"])),
        len(cells.drop_duplicates(point)),
        len(cells[cells["value"].isna()].drop_duplicates(point)),
    )


def _data_summary(record: StudyRecord, data: str) -> DataSummary:
    frame = record.cells[record.cells["data"] == data]
    metrics = list(dict.fromkeys(frame["metric"]))
    metric = "loss" if "loss" in metrics else metrics[0]
    frame = frame[frame["metric"] == metric]
    plane = record.facts["plane"]
    positions = {mark["name"]: (mark["a"], mark["b"]) for mark in plane["marks"]}
    marked = frame[frame["mark"] != _GRID]
    marks = {
        str(name): float(value) for name, value in zip(marked["mark"], marked["value"], strict=True)
    }
    own = record.facts.get("better")
    better = better_of(f"{data}/{metric}", own)
    finite = frame[(frame["mark"] == _GRID) & is_finite(frame["value"])]
    best, at = math.nan, (math.nan, math.nan)
    nearest, distances = None, dict[str, float]()
    if not finite.empty and better is not None:
        row = finite.sort_values("value", ascending=is_lower_better(better), kind="stable").iloc[0]
        best, at = float(row["value"]), (float(row["a"]), float(row["b"]))
        distances = {name: math.dist(position, at) for name, position in positions.items()}
        nearest = min(distances, key=lambda name: distances[name])
    line = record.spec["plane"] == "line" and is_lower_better(better)
    return DataSummary(
        data,
        str(metric),
        better,
        marks,
        best,
        at,
        nearest,
        distances[nearest] if nearest is not None else math.nan,
        _barrier(frame, plane["marks"]) if line else None,
        _best(marks, [m["name"] for m in plane["marks"] if m["role"] != "base"], better),
    )


def _best(marks: dict[str, float], names: list[str], better: Better | None) -> str | None:
    if better is None:
        return None
    values = {name: marks[name] for name in names if math.isfinite(marks.get(name, math.nan))}
    pick = min if is_lower_better(better) else max
    return pick(values, key=lambda name: values[name], default=None)


def _barrier(frame: pd.DataFrame, marks: list[dict[str, Any]]) -> Barrier | None:
    """The barrier between the two models; None while one of them is not measured, or not finite."""
    ends = {mark["role"]: mark for mark in marks}
    values = dict(zip(frame["mark"], frame["value"], strict=True))
    names = [ends[role]["name"] for role in ("origin", "b")]
    if not all(math.isfinite(values.get(name, math.nan)) for name in names):
        return None
    first, last = (float(values[name]) for name in names)
    length, highest = float(ends["b"]["a"]), Barrier(0.0, 0.0)
    inner = frame[(frame["mark"] == _GRID) & (frame["a"] > 0) & (frame["a"] < length)]
    finite = inner[is_finite(inner["value"])]
    for a, value in zip(finite["a"], finite["value"], strict=True):
        share = float(a) / length
        rise = float(value) - ((1 - share) * first + share * last)
        if rise > highest.height:
            highest = Barrier(rise, share)
    return Barrier(highest.height, highest.at, len(inner) - len(finite))


def _barrier_in_words(barrier: Barrier) -> str:
    said = "no barrier between the two models"
    if barrier.height > 0:
        said = f"a barrier of {number(barrier.height)} at {100 * barrier.at:.0f} % of the way"
    if barrier.gaps:
        said += f"; {barrier.gaps} points between them are left out, as they are not finite"
    return said
