"""A loss landscape as filled contours, as a surface or along a line, with the models marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.floors import ever_above_floor
from deltalens.figures.landscape_panels import (
    MARKERS,
    Panel,
    Scale,
    columns_of,
    draw_legend,
    heights_of,
    label_in,
    label_of,
    load_landscape,
    panels,
    spans,
)
from deltalens.figures.landscape_surface import draw_lines, draw_surfaces
from deltalens.figures.style import WIDTH, new_figure, styled

__all__ = ["draw", "draw_contours"]

_LABEL = 0.8
"""The part of an axis's length that a line of its label may take."""
_WIDE = 1.7
"""Panels with a larger ratio of width to height are stacked rather than set side by side."""


def draw(folders: Sequence[Path], entry: FigureEntry, *, first_only: bool = False) -> list[Drawing]:
    """Draw a landscape, finished or not.

    Args:
        folders: of the study.
        entry: the figure.
        first_only: draw the first picture only.

    Returns:
        `landscape`, the loss (or what else was measured first); on a plane `landscape_3d`, the same
        as a surface; and `landscape_<metric>` for every other metric except perplexity, which is
        the loss again, and shares that are near 0 everywhere.

    Raises:
        RecordError: no landscape is there, or none of its points is finished.
    """
    (folder,) = folders
    record = load_landscape(folder)
    metrics = list(dict.fromkeys(record.cells["metric"]))
    leading = "loss" if "loss" in metrics else metrics[0]
    rest = [
        metric
        for metric in ever_above_floor(metrics, record.cells)
        if metric != leading and not (metric == "perplexity" and "loss" in metrics)
    ]
    drawings: list[Drawing] = []
    for metric in (leading, *(() if first_only else rest)):
        name = entry.file_name if metric == leading else f"{entry.file_name}_{metric}"
        shown = panels(record, metric)
        if len(shown[0].labels) == 1:
            drawings.append(draw_lines(shown, name))
        else:
            drawings.append(draw_contours([shown], name))
            if metric == leading and not first_only:
                drawings.append(draw_surfaces(shown, f"{name}_3d"))
    return drawings


def draw_contours(
    rows: Sequence[Sequence[Panel]], name: str, names: Mapping[str, str] | None = None
) -> Drawing:
    """Draw filled contours with labeled levels: a row of panels for each landscape, on one scale.

    Args:
        rows: the panels of each landscape.
        name: of the files.
        names: what the legend calls the origin, b and c, by their role; by default the names of
            their folders.

    Returns:
        The figure.
    """
    with styled():
        stacked = len(rows) == 1 and _shape(rows[0][0]) > _WIDE
        lines = [[panel] for panel in rows[0]] if stacked else [list(row) for row in rows]
        across = max(len(line) for line in lines)
        # The page's width without the color scale, its labels, and the labels of the axes.
        width = (WIDTH - 1.0 - 0.55 - 0.3 * across) / across
        height = sum(width / min(max(_shape(line[0]), 0.6), 3.2) + 0.75 for line in lines)
        figure = new_figure(height + 0.35, layout="constrained")
        axes = figure.subplots(len(lines), across, squeeze=False)
        for index, row in enumerate(rows):
            line = axes[:, 0] if stacked else axes[index]
            scale = Scale.of(row)
            filled = None
            for axis, panel in zip(line, row, strict=False):
                filled = _contours(axis, panel, scale, width) or filled
                if axis is not line[0] and not stacked:
                    axis.set_ylabel("")
                    axis.tick_params(labelleft=False)
            for spare in line[len(row) :]:
                spare.set_visible(False)
            if filled is not None:
                bar = figure.colorbar(filled, ax=list(line[: len(row)]), pad=0.02, aspect=28)
                bar.set_label(label_of(row[0].metric))
                labels = [f"{level:g}" for level in scale.levels]
                bar.set_ticks(scale.height(scale.levels), labels=labels)
        draw_legend(figure, rows, names)
        return Drawing(name, figure)


def _contours(axis: Any, panel: Panel, scale: Scale, inches: float) -> Any:
    """The surface from above, about so wide; a value that is not finite leaves the hatched
    background."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    a, b, heights = heights_of(panel.frame)
    axis.grid(False)
    ground = Rectangle((0, 0), 1, 1, transform=axis.transAxes, fc="0.93", ec="0.7", hatch="////")
    ground.set(linewidth=0, zorder=0)
    axis.add_patch(ground)
    drawn = None
    with_height = panel.frame.dropna(subset="value")
    shared = {"levels": scale.height(scale.levels), "norm": scale.norm()}
    lines: dict[str, Any] = {"colors": "white", "linewidths": 0.7, "alpha": 0.85, **shared}
    lines["linestyles"] = "solid"
    if heights is not None and np.isfinite(heights).any():
        masked = np.ma.masked_invalid(scale.height(heights))
        drawn = axis.contourf(a, b, masked, cmap="viridis", zorder=1, **shared)
        curves = axis.contour(a, b, masked, zorder=2, **lines)
    elif spans(with_height):
        # Not measured completely, or not on a grid: triangles between the points there are.
        xs, ys, values = columns_of(with_height)
        drawn = axis.tricontourf(xs, ys, scale.height(values), cmap="viridis", zorder=1, **shared)
        curves = axis.tricontour(xs, ys, scale.height(values), zorder=2, **lines)
        axis.plot(panel.frame["a"], panel.frame["b"], ".", color="white", markersize=1.2, zorder=2)
    if drawn is not None:
        shown = dict(zip(curves.levels, scale.levels, strict=True))
        every = 1 if len(shown) < 10 else 2
        for text in axis.clabel(
            curves, curves.levels[1::every], fmt=lambda x: f"{shown[x]:g}", fontsize=6.5
        ):
            text.set(color="white", path_effects=[withStroke(linewidth=1.6, foreground="0.25")])
    _mark(axis, panel)
    axis.set(
        xlabel=label_in(panel.labels[0], _LABEL * inches),
        ylabel=label_in(panel.labels[1], _LABEL * min(inches, inches / _shape(panel))),
        xlim=panel.ranges[0],
        ylim=panel.ranges[1],
    )
    if panel.title:
        axis.set_title(panel.title, fontsize=9)
    if panel.distances and 1 / 3.5 < _shape(panel) < 3.5:
        axis.set_aspect("equal")
    return drawn


def _mark(axis: Any, panel: Panel) -> None:
    steps = [mark for mark in panel.marks if mark["role"] in ("step", "origin")]
    if any(mark["role"] == "step" for mark in steps):
        path = [*steps[1:], steps[0]]
        xs, ys = ([mark[x] for mark in path] for x in ("a", "b"))
        axis.plot(xs, ys, color="white", linewidth=1.2, zorder=3)
    for mark in panel.marks:
        marker, color, size = MARKERS[mark["role"]]
        axis.plot(
            mark["a"],
            mark["b"],
            marker=marker,
            color=color,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=1.1,
            linestyle="",
            zorder=5,
        )


def _shape(panel: Panel) -> float:
    """Ratio of width to height of what is shown; 1.15 if the axes have no common unit."""
    if not panel.distances:
        return 1.15
    width, height = (high - low for low, high in panel.ranges)
    return width / height
