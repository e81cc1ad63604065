"""The curves of a matplotlib figure: what their points are called, and where the SVG has them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from deltalens.io.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "as_table", "curves_of", "places_in"]

_MOST_POINTS = 4_000
"""Of a figure: more would make the page heavy, and no reader hovers over them."""
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Curve:
    """A line of a figure."""

    mark: str
    """The id that its group has in the SVG."""
    panel: str
    """The title of its axes."""
    name: str
    """As the legend has it."""
    x_label: str
    y_label: str
    points: tuple[tuple[float, float], ...]
    """Those that are finite."""


def curves_of(figure: Figure) -> list[Curve]:
    """Name the curves of a figure, and mark them, so that its SVG says where they are.

    Args:
        figure: each of its lines gets a `gid`.

    Returns:
        Lines with data in the legend's words; no helper lines of axes. [] if they have too many
        points.
    """
    named = _names(figure)
    curves: list[Curve] = []
    for axes in figure.axes:
        if axes.name != "rectilinear":
            continue
        for line in axes.lines:
            name = _name_of(line, named)
            points = _points(line)
            if name is None or not points:
                continue
            mark = f"curve-{len(curves)}"
            line.set_gid(mark)
            labels = _label(axes, "x"), _label(axes, "y")
            curves.append(Curve(mark, axes.get_title(), name, *labels, points))
    few = sum(len(curve.points) for curve in curves) <= _MOST_POINTS
    return curves if few else []


def as_table(curves: Sequence[Curve], title: str) -> Table:
    """Show the points of curves as numbers.

    Args:
        curves: of one figure.
        title: of the table.

    Returns:
        A row for each point; the panel and the axes only where there are several.
    """
    panels = any(curve.panel for curve in curves)
    heads = (*(["panel"] if panels else []), "curve", "x", "y", "value")
    rows = tuple(
        (
            *([curve.panel] if panels else []),
            curve.name,
            f"{x:.6g}",
            curve.y_label,
            f"{y:.6g}",
        )
        for curve in curves
        for x, y in curve.points
    )
    labels = [*dict.fromkeys(curve.x_label for curve in curves if curve.x_label)]
    x_head = labels[0] if len(labels) == 1 else "x"
    return Table(title, tuple(x_head if head == "x" else head for head in heads), rows)


def places_in(group: Element, points: int) -> list[tuple[float, float]]:
    """Look up where the points of a curve are in an SVG.

    Args:
        group: of the curve.
        points: how many it has.

    Returns:
        Their coordinates; [] if the group has another number of them, as of a line that is cut.
    """
    markers = [each for each in group.iter() if each.tag.endswith("use")]
    if len(markers) == points:
        return [(float(each.get("x", "0")), float(each.get("y", "0"))) for each in markers]
    for path in group:
        if path.tag.endswith("path"):
            numbers = [float(number) for number in _NUMBERS.findall(path.get("d", ""))]
            places = [*zip(numbers[::2], numbers[1::2], strict=False)]
            if len(places) == 2 * points - 1:
                places = places[::2]  # Of a step, every other corner is no point.
            return places if len(places) == points else []
    return []


def _points(line: Any) -> tuple[tuple[float, float], ...]:
    """The finite points of a line whose both axes have data."""
    if line.get_transform() != line.axes.transData:
        return ()
    try:
        pairs = [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]
    except (TypeError, ValueError):
        return ()  # Along words, as of categories.
    return tuple(pair for pair in pairs if all(map(math.isfinite, pair)))


def _label(axes: Axes, which: str) -> str:
    """The label of an axis; of panels that share it, that of the last one along x, and the figure's
    own along y. (Below a figure stands a caption.)"""
    figure: Any = axes.figure
    if which == "x":
        labels = [axes.get_xlabel(), *(each.get_xlabel() for each in reversed(figure.axes))]
    else:
        labels = [axes.get_ylabel(), figure.get_supylabel()]
    return " ".join(next(filter(None, labels), "").split())


def _names(figure: Figure) -> dict[Any, str]:
    """Look of a line -> its name in a legend, for lines that carry none themselves."""
    found: dict[Any, str] = {}
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for legend in filter(None, legends):
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=False):
            for look in _looks(handle):
                found.setdefault(look, text.get_text())
    return found


def _name_of(line: Any, named: dict[Any, str]) -> str | None:
    own = str(line.get_label())
    if own and not own.startswith("_"):
        return " ".join(own.split())
    return next((" ".join(named[look].split()) for look in _looks(line) if look in named), None)


def _looks(line: Any) -> Iterator[Any]:
    """What tells lines apart, the most telling first."""
    if not hasattr(line, "get_marker"):
        return
    color, marker, style = line.get_color(), line.get_marker(), line.get_linestyle()
    yield str(color), str(marker), str(style)
    yield str(color), str(style)
    yield str(color), str(marker)
    yield (str(color),)
