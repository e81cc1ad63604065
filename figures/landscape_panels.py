"""What the figures of a loss landscape have in common: panels, marks, and a scale for several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.catalog.metrics import axis_label, scale_of
from deltalens.errors import Lines, RecordError
from deltalens.figures.loading import load_finite
from deltalens.figures.style import fitted, text_width
from deltalens.io.escaping import plain
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
    "label_in",
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
_MARKER, _SIZE = 0.55, 9.0
"""What a marker and the space around a legend's label take, in inches; the type, in points."""
_DECADES = 10.0
"""Values that span more than this factor are shown on a logarithmic scale."""


@dataclass(frozen=True)
class Panel:
    """A metric on one data set over a landscape."""

    title: str
    metric: str
    frame: pd.DataFrame
    """The grid's points: columns `a`, `b` and `value`."""
    marks: Sequence[Mapping[str, Any]]
    """The marked models: name, role, a, b, distance, and `value`, NaN if not measured yet."""
    labels: Sequence[str]
    """Labels of the axes."""
    ranges: Sequence[Sequence[float]]
    """Lowest and highest coordinate of each axis."""
    distances: bool
    """Whether both axes are distances in weight space, in the same unit."""

    @property
    def finite(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """All values of the grid that are finite."""
        values = np.asarray(self.frame["value"].dropna(), float)
        return values


def load_landscape(folder: str | Path) -> StudyRecord:
    """Read a landscape for a figure.

    Args:
        folder: of the study.

    Returns:
        The study.

    Raises:
        RecordError: it is another kind of study, or no point of its grid is finished.
    """
    record = load_finite(folder)
    if record.kind != "landscape" or (record.cells["mark"] == "grid").sum() == 0:
        raise RecordError(f"{record.path}: no landscape with finished points")
    return record


def panels(record: StudyRecord, metric: str) -> list[Panel]:
    """Make a panel for each data set that a metric was measured on.

    Args:
        record: of the landscape.
        metric: as the records name it.

    Returns:
        The panels.
    """
    plane = record.facts["plane"]
    cells = record.cells[record.cells["metric"] == metric]
    shown = []
    for data, frame in cells.groupby("data", sort=False):
        value = frame["value"].where(is_finite(frame["value"]))
        frame = frame.assign(value=scale_of(metric) * value)
        at = dict(zip(frame["mark"], frame["value"], strict=True))
        marks = [{**mark, "value": at.get(mark["name"], math.nan)} for mark in plane["marks"]]
        grid = frame[frame["mark"] == "grid"][["a", "b", "value"]]
        title = "" if data == "-" else str(data)
        distances = record.spec["plane"] in ("checkpoints", "line", "trajectory")
        ranges = record.spec["range"] or plane["ranges"]
        shown.append(Panel(title, metric, grid, marks, plane["labels"], ranges, distances))
    return shown


@dataclass(frozen=True)
class Scale:
    """A color scale for several panels."""

    levels: tuple[float, ...]
    """Values of the contours, ascending; the first and last are the ends of the scale."""
    logarithmic: bool

    @classmethod
    def of(cls, row: Sequence[Panel]) -> Scale:
        """Choose a scale that covers all values.

        Args:
            row: the panels.

        Returns:
            The scale; logarithmic if the values are positive and span more than a factor of 10.
        """
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
        """Compute the height that is drawn for values.

        Args:
            values: a number or an array.

        Returns:
            The values, or their decimal logarithms.
        """
        if not self.logarithmic:
            return np.asarray(values, float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log10(values)

    def norm(self) -> Any:
        """Make matplotlib's map from heights to colors.

        Returns:
            A `Normalize` from a height to the range 0 to 1.
        """
        from matplotlib.colors import Normalize

        low, high = self.height((self.levels[0], self.levels[-1]))
        return Normalize(low, high)


def _round_levels(low: float, high: float) -> list[float]:
    """1, 2 and 5 per decade around the values; fewer if they span many decades."""
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
) -> int:
    """Draw the legend below a figure: the marked models, and what a gap means if there is one.

    Args:
        figure: matplotlib's.
        rows: the panels of each landscape.
        names: what to call the origin, b and c, by their role; by default the names of their
            folders.

    Returns:
        How many lines it has.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: dict[str, Any] = {}
    marks = [mark for row in rows for mark in row[0].marks]
    for mark in marks:
        marker, color, size = MARKERS[mark["role"]]
        name = _name(mark, names)
        far = [
            one["distance"] for one in marks if one["role"] != "step" and _name(one, names) == name
        ]
        entries.setdefault(
            name + _projected(far),
            Line2D([], [], marker=marker, color=color, linestyle="", markersize=0.8 * size),
        )
    if any(len(panel.finite) < len(panel.frame) for row in rows for panel in row):
        entries["no finite value"] = Patch(facecolor="0.93", edgecolor="0.7", hatch="////")
    labels, width = [plain(name) for name in entries], figure.get_figwidth()
    across = min(4, len(labels))
    while across > 1 and _across(labels, across) > width:
        across -= 1
    labels = [fitted(label, width - _MARKER, _SIZE) for label in labels]
    figure.legend(entries.values(), labels, loc="outside lower center", ncols=across)
    return -(-len(labels) // across)


def _across(labels: Sequence[str], columns: int) -> float:
    """Width of a legend in inches; matplotlib fills its columns from top to bottom."""
    lines = -(-len(labels) // columns)
    widths = [text_width(label, _SIZE) / 72 for label in labels]
    filled = [max(widths[at : at + lines]) for at in range(0, len(widths), lines)]
    return sum(filled) + _MARKER * columns


def label_in(label: str, inches: float, size: float = _SIZE) -> str:
    """Break the label of an axis into lines, and leave out the middle of a name without room.

    Args:
        label: `distance from <name> towards <name>`.
        inches: the length of the axis.
        size: of the type, in points.

    Returns:
        The label.
    """
    lines = [""]
    for word in (fitted(word, inches, size) for word in plain(label).split(" ")):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= 72 * inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return Lines(*lines)


def _name(mark: Mapping[str, Any], names: Mapping[str, str] | None) -> str:
    if mark["role"] == "step":
        return "earlier checkpoints"
    return str((names or {}).get(mark["role"], mark["name"]))


def _projected(distances: Sequence[float]) -> str:
    """How far a model of this name lies off the plane of each landscape."""
    far = [f"{distance:.3g}" for distance in distances if distance > 1e-6]
    if not far:
        return ""
    planes = "plane" if len(far) == 1 else "planes"
    return f" (projected, {' and '.join(dict.fromkeys(far))} off the {planes})"


def heights_of(frame: pd.DataFrame) -> tuple[Any, Any, Any]:
    """Arrange a grid as matplotlib draws it.

    Args:
        frame: the grid's points: columns `a`, `b` and `value`.

    Returns:
        Ascending a (A,), ascending b (B,) and the values (B, A); None for the values if a point is
        missing.
    """
    table = frame.pivot(index="b", columns="a", values="value")
    whole = len(frame) == table.size and min(table.shape) > 1
    return table.columns.to_numpy(), table.index.to_numpy(), table.to_numpy() if whole else None


def spans(frame: pd.DataFrame) -> bool:
    """Tell whether points span an area.

    Args:
        frame: columns `a` and `b`.

    Returns:
        Whether at least three of them are not on a line along an axis.
    """
    return len(frame) >= 3 and frame["a"].nunique() > 1 and frame["b"].nunique() > 1


def columns_of(frame: pd.DataFrame) -> tuple[Any, Any, Any]:
    """Take the columns apart.

    Args:
        frame: columns `a`, `b` and `value`.

    Returns:
        The three columns as arrays.
    """
    return frame["a"].to_numpy(), frame["b"].to_numpy(), frame["value"].to_numpy()


def label_of(metric: str) -> str:
    """Label an axis or a color scale.

    Args:
        metric: as the records name it.

    Returns:
        The metric's label with its unit.
    """
    return axis_label(metric, "the origin")
