"""What the pictures of a loss landscape have in common: panels, marks, one scale for several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.catalog.metrics import axis_label, scale_of
from deltalens.errors import RecordError
from deltalens.figures.loading import load_finite
from deltalens.io.records import StudyRecord
from deltalens.io.tables import is_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MARKERS",
    "Panel",
    "Scale",
    "columns_of",
    "draw_legend",
    "heights_of",
    "label_of",
    "load_landscape",
    "panels",
    "spans",
]

MARKERS = {
    "origin": ("*", "#1B9E3E", 15.0),
    "b": ("s", "#7B3FA0", 8.5),
    "c": ("^", "#D7301F", 10.0),
    "base": ("D", "0.35", 7.5),
    "step": ("o", "#1B9E3E", 4.5),
}
_DECADES = 10.0
"""Values that span more than this factor are shown on a logarithmic scale."""


@dataclass(frozen=True)
class Panel:
    """One data set's metric over a landscape."""

    title: str
    metric: str
    frame: pd.DataFrame
    """The grid's points: a, b, value."""
    marks: Sequence[Mapping[str, Any]]
    """Each marked model: name, role, a, b, distance; and `value`, NaN if not measured yet."""
    labels: Sequence[str]
    """Of the axes."""
    ranges: Sequence[Sequence[float]]
    """Where the axes begin and end."""
    distances: bool
    """Whether the axes are distances in weight space, of one unit."""

    @property
    def finite(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """All values that have a height."""
        values = np.asarray(self.frame["value"].dropna(), float)
        return values


def load_landscape(folder: str | Path) -> StudyRecord:
    """Read a landscape.

    Raises:
        RecordError: another study, or no finished point of the grid.
    """
    record = load_finite(folder)
    if record.kind != "landscape" or (record.cells["mark"] == "grid").sum() == 0:
        raise RecordError(f"{record.path}: no landscape with finished points")
    return record


def panels(record: StudyRecord, metric: str) -> list[Panel]:
    """A panel for each data set that a metric was measured on."""
    plane = record.facts["plane"]
    cells = record.cells[record.cells["metric"] == metric]
    made = []
    for data, frame in cells.groupby("data", sort=False):
        value = frame["value"].where(is_finite(frame["value"]))
        frame = frame.assign(value=scale_of(metric) * value)
        at = dict(zip(frame["mark"], frame["value"], strict=True))
        marks = [{**mark, "value": at.get(mark["name"], math.nan)} for mark in plane["marks"]]
        grid = frame[frame["mark"] == "grid"][["a", "b", "value"]]
        title = "" if data == "-" else str(data)
        distances = record.spec["plane"] in ("checkpoints", "line", "trajectory")
        ranges = record.spec["range"] or plane["ranges"]
        made.append(Panel(title, metric, grid, marks, plane["labels"], ranges, distances))
    return made


@dataclass(frozen=True)
class Scale:
    """One color scale for several panels."""

    levels: tuple[float, ...]
    logarithmic: bool

    @classmethod
    def of(cls, row: Sequence[Panel]) -> Scale:
        """Over all that the panels show."""
        from matplotlib.ticker import MaxNLocator

        values = np.concatenate([panel.finite for panel in row])
        if not len(values):
            return cls((0.0, 1.0), False)
        low, high = float(values.min()), float(values.max())
        if low > 0 and high / low > _DECADES:
            return cls(tuple(_round_levels(low, high)), True)
        levels = [float(x) for x in MaxNLocator(12).tick_values(low, high)]
        if high - low < 1e-12 * max(1.0, abs(high)):
            levels = [low - 0.5, low + 0.5]
        return cls(tuple(levels), False)

    def height(self, values: Any) -> Any:
        """What is drawn for a value: itself, or its logarithm."""
        if not self.logarithmic:
            return np.asarray(values, float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log10(values)

    def norm(self) -> Any:
        """From a height to a place on the scale: 0 to 1."""
        from matplotlib.colors import Normalize

        low, high = self.height((self.levels[0], self.levels[-1]))
        return Normalize(low, high)


def _round_levels(low: float, high: float) -> list[float]:
    """1, 2, 5 per decade around the values; fewer where they span many decades."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps: tuple[int, ...] = (1, 2, 5)
    if len(decades) > 7:
        steps = (1, 3)
    every = [float(f"{step}e{decade}") for decade in decades for step in steps]
    if len(decades) <= 3:
        every = [
            float(f"{step:g}e{decade}") for decade in decades for step in (1, 1.5, 2, 3, 4, 5, 7)
        ]
    below = [level for level in every if level <= low]
    above = [level for level in every if level >= high]
    inside = [level for level in every if low < level < high]
    return [below[-1], *inside, above[0] if above else float(f"1e{decades[-1] + 1}")]


def draw_legend(
    figure: Any, rows: Sequence[Sequence[Panel]], names: Mapping[str, str] | None = None
) -> None:
    """The marked models below a figure, and what a gap is if there is one."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: dict[str, Any] = {}
    for row in rows:
        for mark in row[0].marks:
            label = _name(mark, names)
            marker, color, size = MARKERS[mark["role"]]
            entries.setdefault(
                label,
                Line2D([], [], marker=marker, color=color, linestyle="", markersize=0.8 * size),
            )
    if any(len(panel.finite) < len(panel.frame) for row in rows for panel in row):
        entries["no finite value"] = Patch(facecolor="0.93", edgecolor="0.7", hatch="////")
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, len(entries))
    )


def _name(mark: Mapping[str, Any], names: Mapping[str, str] | None) -> str:
    if mark["role"] == "step":
        return "earlier checkpoints"
    name = (names or {}).get(mark["role"], mark["name"])
    far = mark["distance"] > 1e-6
    return f"{name} (projected, {mark['distance']:.3g} off the plane)" if far else name


def heights_of(frame: pd.DataFrame) -> tuple[Any, Any, Any]:
    """Ascending a, ascending b, and heights (B, A); None for the heights if any is missing."""
    table = frame.pivot(index="b", columns="a", values="value")
    whole = len(frame) == table.size and min(table.shape) > 1
    return table.columns.to_numpy(), table.index.to_numpy(), table.to_numpy() if whole else None


def spans(frame: pd.DataFrame) -> bool:
    """Whether points make a triangle."""
    return len(frame) >= 3 and frame["a"].nunique() > 1 and frame["b"].nunique() > 1


def columns_of(frame: pd.DataFrame) -> tuple[Any, Any, Any]:
    """a, b and value of every point."""
    return frame["a"].to_numpy(), frame["b"].to_numpy(), frame["value"].to_numpy()


def label_of(metric: str) -> str:
    """An axis' label for a metric."""
    return axis_label(metric, "the origin")
