"""Lines that lie on each other: drawn so that the lower one shows, and named in the caption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["coinciding_note", "layered"]

_APART = 0.008
"""Share of the y-axis below which two lines cannot be told apart: a point of a panel, about as wide
as a line."""
_MOST = 4
"""Groups that a caption has room for."""
_NAMED = 2
"""Panels of a group that are named."""


def layered(axis: Axes, line: Any = "-") -> dict[str, Any]:
    """How the next line with marks is laid on those that are drawn already, so that of lines that
    coincide the lower ones show: solid ones lie under dashed ones, and each line is thinner than
    the one before, with smaller marks.

    Args:
        axis: with the lines so far.
        line: the next one's style.

    Returns:
        Line width, marker size and order, as matplotlib's `plot` takes them.
    """
    solid = line == "-"
    before = sum((curve.get_linestyle() == "-") == solid for curve in axis.lines if _marked(curve))
    place = min(5, before if solid else before + 2)
    return {
        "linewidth": 2.0 - 0.2 * place,
        "markersize": 5.6 - 0.6 * place,
        "zorder": 2.0 + 0.05 * place,
    }


def coinciding_note(axes: Iterable[Axes]) -> str:
    """Name the lines that cannot be told apart, panel by panel.

    Args:
        axes: the panels, with their titles and labels.

    Returns:
        A sentence; empty if every line can be seen.
    """
    panels = [axis for axis in axes if axis.get_visible()]
    found: dict[tuple[str, ...], list[str]] = {}
    for axis in panels:
        for group in _groups(axis):
            found.setdefault(group, []).append(_panel_name(axis))
    if not found:
        return ""
    told = [
        _in_words(names) + (f" ({_where(named, len(panels))})" if len(panels) > 1 else "")
        for names, named in [*found.items()][:_MOST]
    ]
    more = len(found) - len(told)
    rest = f"; and {more} more" if more > 0 else ""
    return f"On the same line: {'; '.join(told)}{rest}."


def _where(named: Sequence[str], panels: int) -> str:
    """The panels, by their names if they are few."""
    few = len(named) <= _NAMED
    return "; ".join(named) if few else f"in {len(named)} of {panels} panels"


def _in_words(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _panel_name(axis: Axes) -> str:
    """The panel's title and its metric, without the unit."""
    title, label = (text.replace("\n", " ") for text in (axis.get_title(), axis.get_ylabel()))
    return ", ".join(filter(None, (title, label.partition(" (")[0])))


def _marked(line: Line2D) -> bool:
    """Whether a line has a place in the legend, and marks."""
    return not str(line.get_label()).startswith("_") and line.get_marker() not in ("", "None", None)


def _groups(axis: Axes) -> list[tuple[str, ...]]:
    """Labels of the lines that coincide wherever both are drawn."""
    lines = {
        str(line.get_label()): _points(line)
        for line in axis.lines
        if not str(line.get_label()).startswith("_")
    }
    low, high = axis.get_ylim()
    logarithmic = axis.get_yscale() == "log"
    if logarithmic:
        low, high = np.log10(low), np.log10(high)
        lines = {name: {x: _log(y) for x, y in one.items()} for name, one in lines.items()}
    near = _APART * abs(high - low)
    groups: list[list[str]] = []
    for name, points in lines.items():
        own = next((each for each in groups if _same(lines[each[0]], points, near)), None)
        if own is None:
            groups.append([name])
        else:
            own.append(name)
    return [tuple(group) for group in groups if len(group) > 1]


def _log(value: float) -> float:
    return float(np.log10(value)) if value > 0 else float("nan")


def _points(line: Line2D) -> Mapping[float, float]:
    """x -> y; of a level the one y, at no x."""
    xs: Any = np.asarray(line.get_xdata(), dtype=float)
    ys: Any = np.asarray(line.get_ydata(), dtype=float)
    if line.get_transform() != line.axes.transData:  # type: ignore[union-attr]
        return {float("nan"): float(ys[0])}
    return {
        float(x): float(y) for x, y in zip(xs, ys, strict=True) if np.isfinite(x) and np.isfinite(y)
    }


def _same(one: Mapping[float, float], other: Mapping[float, float], near: float) -> bool:
    """Whether two lines have the same y wherever both have a point; a level has one everywhere."""
    if not one or not other:
        return False
    levels = [points for points in (one, other) if _is_level(points)]
    if levels:
        (level,) = levels[0].values()
        rest = other if levels[0] is one else one
        return all(abs(y - level) <= near for y in rest.values())
    shared = one.keys() & other.keys()
    enough = len(shared) > 1 or len(shared) == len(one) == len(other)
    return enough and all(abs(one[x] - other[x]) <= near for x in shared)


def _is_level(points: Mapping[float, float]) -> bool:
    return len(points) == 1 and next(iter(points)) != next(iter(points))
