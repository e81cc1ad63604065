"""What a landscape found, in a few sentences and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import Better, better_of, is_lower_better, is_worse, no_direction
from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table, is_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Barrier", "DataSummary", "LandscapeSummary", "summarize_landscape"]

_GRID = "grid"


@dataclass(frozen=True)
class Barrier:
    """How far the loss rises above the straight line between the ends' losses."""

    height: float
    """The largest rise; 0 if there is none (Entezari et al. 2022, definition 1)."""
    at: float
    """Where, as a share of the way from the origin to B."""
    gaps: int = 0
    """Points between the two that have no finite value, and are left out."""


@dataclass(frozen=True)
class DataSummary:
    """One data set's leading metric over the plane."""

    data: str
    metric: str
    better: Better | None
    """Which way it is better; None where nobody has said so: then nothing is the best."""
    marks: dict[str, float]
    """The metric at each marked point."""
    best: float
    """The best value of the grid."""
    best_at: tuple[float, float]
    nearest: str | None
    """The marked model nearest to that."""
    nearest_distance: float
    barrier: Barrier | None
    """On a line."""
    best_mark: str | None
    """The marked model that is best; of those that span the plane, not the projected base."""

    @property
    def name(self) -> str:
        """The metric, and on which data."""
        return f"{self.data} {self.metric}" if self.data != "-" else self.metric

    @property
    def best_mark_wins(self) -> bool:
        """Whether that one is better than every point of the grid."""
        if self.better is None or self.best_mark is None:
            return False
        return is_worse(self.best, self.marks[self.best_mark], self.better)


@dataclass(frozen=True)
class LandscapeSummary:
    """The answer of a landscape."""

    record: StudyRecord
    data: tuple[DataSummary, ...]
    done: int
    """Points measured."""
    gaps: int
    """Points at which a metric was NaN or infinite."""

    def sentences(self) -> Iterator[str]:
        """The summary as a person reads it."""
        plane = self._plane
        for found in self.data:
            yield from self._of(found)
        if len([found for found in self.data if found.best_mark]) > 1:
            yield self._agreement()
        for mark in plane["marks"]:
            if mark["distance"] > 1e-6:
                yield f"{mark['name']} is projected: {_number(mark['distance'])} from the plane"
        found = plane["found"]
        if "eigenvalues" in found:
            yield f"largest eigenvalues: {', '.join(_number(v) for v in found['eigenvalues'])}"
        if "explained" in found:
            yield f"the axes explain {100 * sum(found['explained']):.1f} % of the run's variance"
        if self.done < self.record.facts["points"]:
            yield f"{self.done} of {self.record.facts['points']} points are measured"
        if self.gaps:
            yield f"{self.gaps} points have no finite value: gaps in the picture"

    def _of(self, found: DataSummary) -> Iterator[str]:
        name = found.name
        values = ", ".join(f"{mark} {_number(value)}" for mark, value in found.marks.items())
        best = f"; best: {found.best_mark}" if len(found.marks) > 1 and found.best_mark else ""
        yield f"{name}: {values}{best}"
        if found.better is None:
            yield no_direction(found.metric, name)
            return
        gaps = [mark for mark, value in found.marks.items() if not math.isfinite(value)]
        if gaps:
            yield f"{name} is not finite, and left out: {', '.join(gaps)}"
        if not math.isnan(found.best):
            a, b = (_number(x) for x in found.best_at)
            where = f"({a}, {b})" if len(self._plane["labels"]) > 1 else a
            yield (
                f"{name}: {_number(found.best)} at the grid's best point {where}, "
                f"{_number(found.nearest_distance)} from {found.nearest}"
                + (f"; {found.best_mark} itself is better" if found.best_mark_wins else "")
            )
        if found.barrier is not None:
            barrier = found.barrier
            left_out = f"; {barrier.gaps} points between them are not finite, and left out"
            yield (
                f"{name}: a barrier of {_number(barrier.height)} at {100 * barrier.at:.0f} % of "
                "the way"
                if barrier.height > 0
                else f"{name}: no barrier between the two"
            ) + left_out * bool(barrier.gaps)

    def _agreement(self) -> str:
        best = {found.data: found.best_mark for found in self.data if found.best_mark}
        if len(set(best.values())) == 1:
            where = "all data" if len(best) == len(self.data) else ", ".join(best)
            return f"{next(iter(best.values()))} is best on {where}"
        return "the data disagree: " + ", ".join(f"{m} is best on {d}" for d, m in best.items())

    @property
    def _plane(self) -> dict[str, Any]:
        plane: dict[str, Any] = self.record.facts["plane"]
        return plane

    def tables(self) -> list[Table]:
        """For each data set the marked models: where they are, and every metric there."""
        made = []
        for data, frame in self.record.cells.groupby("data", sort=False):
            own = frame[frame["mark"] != _GRID]
            metrics = list(dict.fromkeys(own["metric"]))
            values = {
                (mark, metric): value
                for mark, metric, value in zip(
                    own["mark"], own["metric"], own["value"], strict=True
                )
            }
            rows = tuple(
                (
                    mark["name"],
                    _number(mark["a"]),
                    _number(mark["b"]),
                    *(_number(values.get((mark["name"], m), math.nan)) for m in metrics),
                )
                for mark in self._plane["marks"]
            )
            title = "" if data == "-" else str(data)
            made.append(Table(title, ("model", "a", "b", *metrics), rows))
        return made

    def as_json(self) -> dict[str, Any]:
        """The summary for scripts."""
        return {
            "study": str(self.record.path),
            "plane": self.record.spec["plane"],
            "points": self.record.facts["points"],
            "measured": self.done,
            "gaps": self.gaps,
            "marks": self._plane["marks"],
            **self._plane["found"],
            "data": {
                found.data: {
                    "metric": found.metric,
                    "better": found.better,
                    "marks": found.marks,
                    "best_mark": found.best_mark,
                    "best_mark_beats_grid": found.best_mark_wins,
                    "best": found.best,
                    "best_at": list(found.best_at),
                    "nearest": found.nearest,
                    "nearest_distance": found.nearest_distance,
                    "barrier": None if found.barrier is None else vars(found.barrier),
                }
                for found in self.data
            },
            "notes": self.record.facts.get("notes", []),
        }


def summarize_landscape(record: StudyRecord) -> LandscapeSummary:
    """Summarize a landscape, also one that is not finished.

    Raises:
        RecordError: it is another kind of study, or has no finished point.
    """
    if record.kind != "landscape" or record.cells.empty:
        raise RecordError(f"{record.path}: no landscape with finished points")
    cells = record.cells
    point = ["a", "b", "mark"]
    return LandscapeSummary(
        record,
        tuple(_of_data(record, str(data)) for data in dict.fromkeys(cells["data"])),
        len(cells.drop_duplicates(point)),
        len(cells[cells["value"].isna()].drop_duplicates(point)),
    )


def _of_data(record: StudyRecord, data: str) -> DataSummary:
    frame = record.cells[record.cells["data"] == data]
    metrics = list(dict.fromkeys(frame["metric"]))
    metric = "loss" if "loss" in metrics else metrics[0]
    frame = frame[frame["metric"] == metric]
    plane = record.facts["plane"]
    places = {mark["name"]: (mark["a"], mark["b"]) for mark in plane["marks"]}
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
        distances = {name: math.dist(place, at) for name, place in places.items()}
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
    worth = {name: marks[name] for name in names if math.isfinite(marks.get(name, math.nan))}
    if better is None:
        return None
    pick = min if is_lower_better(better) else max
    return pick(worth, key=lambda name: worth[name], default=None)


def _barrier(frame: pd.DataFrame, marks: list[dict[str, Any]]) -> Barrier | None:
    """Over the points between the two models; None while an end is not measured, or not finite."""
    ends = {mark["role"]: mark for mark in marks}
    values = dict(zip(frame["mark"], frame["value"], strict=True))
    names = [ends[role]["name"] for role in ("origin", "b")]
    if not all(math.isfinite(values.get(name, math.nan)) for name in names):
        return None
    first, last = (float(values[name]) for name in names)
    length, found = float(ends["b"]["a"]), Barrier(0.0, 0.0)
    inner = frame[(frame["mark"] == _GRID) & (frame["a"] > 0) & (frame["a"] < length)]
    finite = inner[is_finite(inner["value"])]
    for a, value in zip(finite["a"], finite["value"], strict=True):
        share = float(a) / length
        rise = float(value) - ((1 - share) * first + share * last)
        if rise > found.height:
            found = Barrier(rise, share)
    return Barrier(found.height, found.at, len(inner) - len(finite))


def _number(value: float) -> str:
    if value == 0 or math.isnan(value):
        return f"{value:g}"
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}"
