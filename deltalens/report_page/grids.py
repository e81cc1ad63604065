"""The numbers behind the heatmaps and bars of a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deltalens.io.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["grid_table"]

_MOST = 4_000
"""Rows; a finer heatmap is data for programs, and lies in the records."""
_COLORBAR = "<colorbar>"
Row = tuple[str, str, str, str]
"""Panel, place along x, place along y, value."""


def grid_table(figure: Figure, title: str) -> Table | None:
    """Show the numbers of a figure's heatmaps and bars.

    Args:
        figure: drawn.
        title: of the table.

    Returns:
        A row for each cell of a heatmap and each bar; None if there are none, or too many.
    """
    rows: list[Row] = []
    for axes in figure.axes:
        if axes.name == "rectilinear" and axes.get_label() != _COLORBAR:
            rows += _cells(axes)
            if len(rows) > _MOST:
                return None
    if not rows:
        return None
    # A column that is empty throughout says nothing.
    heads = ("panel", "x", "y", "value")
    kept = [at for at in range(len(heads)) if any(row[at] for row in rows)]
    shown = tuple(tuple(row[at] for at in kept) for row in rows)
    return Table(title, tuple(heads[at] for at in kept), shown)


def _cells(axes: Axes) -> Iterator[Row]:
    import numpy as np
    from matplotlib.collections import QuadMesh

    panel = " ".join(axes.get_title().split())
    for mesh in axes.collections:
        if isinstance(mesh, QuadMesh):
            corners = np.asarray(mesh.get_coordinates(), dtype=float)
            centers = (corners[:-1, :-1] + corners[1:, 1:]) / 2
            values: Any = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
            yield from _grid(axes, panel, centers, values.reshape(centers.shape[:2]))
    for image in axes.images:
        values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if values.ndim == 2:
            left, right, bottom, top = image.get_extent()
            down, across = values.shape
            xs = left + (right - left) * (np.arange(across) + 0.5) / across
            first, last = (top, bottom) if image.origin == "upper" else (bottom, top)
            ys = first + (last - first) * (np.arange(down) + 0.5) / down
            yield from _grid(axes, panel, np.stack(np.meshgrid(xs, ys), axis=-1), values)
    for bars in axes.containers:
        for bar in getattr(bars, "patches", ()):
            place, height = bar.get_x() + bar.get_width() / 2, float(bar.get_height())
            if math.isfinite(height):
                yield panel, _place(axes, "x", place), "", f"{height:.5g}"


def _grid(axes: Axes, panel: str, centers: Any, values: Any) -> Iterator[Row]:
    down, across = values.shape
    if down * across > _MOST:
        # More than any table shows: enough rows to be told so.
        down, across = _MOST + 1, 1
        yield from ((panel, "", "", "") for _ in range(down))
        return
    columns = [_place(axes, "x", float(centers[0, at, 0])) for at in range(across)]
    rows = [_place(axes, "y", float(centers[at, 0, 1])) for at in range(down)]
    for at, row in enumerate(rows):
        for along, column in enumerate(columns):
            value = float(values[at, along])
            if math.isfinite(value):
                yield panel, column, row, f"{value:.5g}"


def _place(axes: Axes, which: str, position: float) -> str:
    """The words of the tick at a position, or the position; of panels that share an axis the words
    stand at one of them."""
    sharing = [axes, *getattr(axes, f"get_shared_{which}_axes")().get_siblings(axes)]
    for each in sharing:
        axis = each.xaxis if which == "x" else each.yaxis
        for tick, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False):
            text = " ".join(label.get_text().split())
            if text and abs(float(tick) - position) < 1e-6:
                return text
    return f"{position:.5g}"
