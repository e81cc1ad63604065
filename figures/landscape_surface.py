"""A loss landscape as a surface, seen from the side, or along a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.figures.drawing import Drawing
from deltalens.figures.landscape_panels import (
    MARKERS,
    Panel,
    Scale,
    columns_of,
    draw_legend,
    heights_of,
    label_in,
    label_of,
    spans,
)
from deltalens.figures.style import WIDTH, fitted, new_figure, styled
from deltalens.io.escaping import plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw_lines", "draw_surfaces"]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SIZE = 7.5
"""Of the labels beside a surface, in points."""


def draw_surfaces(row: Sequence[Panel], name: str) -> Drawing:
    """Draw a landscape as surfaces, seen from the side, on one scale.

    Args:
        row: the panels, one for each data set.
        name: of the files.

    Returns:
        The figure.
    """
    scale = Scale.of(row)
    with styled():
        across = min(2, len(row))
        down = -(-len(row) // across)
        figure = new_figure((4.6 if across == 1 else 3.4) * down + 0.4)
        for index, panel in enumerate(row, 1):
            axis = figure.add_subplot(down, across, index, projection="3d", computed_zorder=False)
            _surface(axis, panel, scale)
        below = (0.35 + 0.2 * draw_legend(figure, [row])) / figure.get_figheight()
        figure.subplots_adjust(left=0.01, right=0.93, bottom=below, top=0.95, wspace=0.14)
        return Drawing(name, figure)


def _surface(axis: Any, panel: Panel, scale: Scale) -> None:
    a, b, heights = heights_of(panel.frame)
    norm = scale.norm()
    # With a color map a face takes the mean of its corners; with given colors it would take that
    # of its first corner.
    look: dict[str, Any] = {"cmap": "viridis", "norm": norm, "shade": False, "zorder": 1}
    look |= {"linewidth": 0.15, "edgecolor": (1, 1, 1, 0.35)}
    if heights is not None:
        xs, ys = np.meshgrid(a, b)
        axis.plot_surface(xs, ys, scale.height(heights), rstride=1, cstride=1, **look)
    else:
        with_height = panel.frame.dropna(subset="value")
        if spans(with_height):
            xs, ys, zs = columns_of(with_height)
            axis.plot_trisurf(xs, ys, scale.height(zs), **look)
    low, high = float(norm.vmin), float(norm.vmax)
    for mark in panel.marks:
        value = mark["value"]
        at = float(scale.height(value))
        if not math.isfinite(at):
            continue
        marker, color, size = MARKERS[mark["role"]]
        top = at + 0.1 * (high - low)
        axis.plot([mark["a"]] * 2, [mark["b"]] * 2, [at, top], color=color, lw=1.1, zorder=4)
        axis.plot(
            [mark["a"]],
            [mark["b"]],
            [top],
            marker=marker,
            color=color,
            markersize=0.8 * size,
            markeredgecolor="white",
            markeredgewidth=0.8,
            linestyle="",
            zorder=5,
        )
    ticks = _thinned(scale.levels, 6)
    axis.set_zlim(low, high)
    axis.set_zticks(scale.height(ticks), [f"{tick:g}" for tick in ticks])
    axis.tick_params(labelsize=6.5, pad=-2)
    axis.locator_params(axis="x", nbins=4)
    axis.locator_params(axis="y", nbins=4)
    axis.set_xlabel(_short(panel.labels[0]), fontsize=_SIZE, labelpad=-5)
    axis.set_ylabel(_short(panel.labels[1]), fontsize=_SIZE, labelpad=-4)
    name = panel.metric.replace("_", " ")
    axis.set_title(f"{name}, {panel.title}" if panel.title else name, fontsize=9, y=0.98)
    axis.view_init(elev=32, azim=-58)
    axis.set_box_aspect((1.15, 1.0, 0.75))


def _short(label: str) -> str:
    """A label short enough to fit beside a surface."""
    short = label.split(" (")[0].replace("distance from ", "").replace("distance at a ", "")
    return " ".join(fitted(word, 0.9, _SIZE) for word in plain(short).split(" "))


def _thinned(ticks: Sequence[float], most: int) -> list[float]:
    step = -(-len(ticks) // most)
    return list(ticks[::step])


def _along(panel: Panel) -> pd.DataFrame:
    """The grid's points and the marked models on a line, in their order."""
    import pandas as pd

    marked = pd.DataFrame([*panel.marks], columns=["a", "value"])
    whole = pd.concat([marked, panel.frame[["a", "value"]]], ignore_index=True)
    return whole.drop_duplicates("a").sort_values("a")


def draw_lines(row: Sequence[Panel], name: str) -> Drawing:
    """Draw a landscape along a line: a curve for each data set, through the models marked on it.

    Args:
        row: the panels, one for each data set.
        name: of the files.

    Returns:
        The figure.
    """
    with styled():
        figure = new_figure(3.6, layout="constrained")
        axis = figure.subplots()
        scale = Scale.of(row)
        for index, panel in enumerate(row):
            color = _COLORS[index % len(_COLORS)]
            frame = _along(panel)
            axis.plot(
                frame["a"],
                frame["value"],
                color=color,
                linewidth=1.5,
                label=fitted(plain(panel.title), WIDTH / 3, 9),
            )
            for a in frame["a"][frame["value"].isna()]:
                axis.axvline(a, color="0.85", linewidth=3, zorder=0)
            for mark in panel.marks:
                marker, fill, size = MARKERS[mark["role"]]
                axis.plot(
                    mark["a"],
                    mark["value"],
                    marker=marker,
                    color=fill,
                    markersize=0.85 * size,
                    markeredgecolor="white",
                    linestyle="",
                    zorder=5,
                )
        if scale.logarithmic:
            axis.set_yscale("log")
        axis.set(xlabel=label_in(row[0].labels[0], WIDTH - 1), ylabel=label_of(row[0].metric))
        if any(panel.title for panel in row):
            axis.legend(loc="best")
        draw_legend(figure, [row])
        return Drawing(name, figure)
