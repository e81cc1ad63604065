"""A probe's run: gradient magnitudes, the overlap of their masks, and updates over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.catalog.layers import LAYER_GROUPS, layer_group
from deltalens.errors import RecordError
from deltalens.figures.coinciding import coinciding_note
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.learned_masks import draw_learned_masks
from deltalens.figures.run_masks import draw_coverage, draw_overlap, draw_overlap_by_layer
from deltalens.figures.run_time import RunTime, mean_per, panel_grid
from deltalens.figures.style import BLUE, ORANGE, VERMILION, add_caption, add_legend, styled
from deltalens.io.records import RunRecord, find_run, load_run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_FAINTEST = 1e-4
"""The lowest share of entries on the color scale."""


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw a run of a probe.

    Args:
        folders: of the run, or of a training that has one.
        entry: the figure.

    Returns:
        `gradient_histograms`, `mask_overlap`, `overlap_by_layer`, `coverage`, `updates` and
        `learned_masks`, as far as they were logged.

    Raises:
        RecordError: no run is there, or no step is logged yet.
    """
    (folder,) = folders
    run = load_run(find_run(folder))
    if run.tensors.empty:
        raise RecordError(f"{run.path}: no step logged yet; nothing to draw")
    # A killed process can leave rows of a step in some tables and none in this one.
    histograms, masks = (_in_tensors(frame, run) for frame in (run.histograms, run.masks))
    run = replace(run, histograms=histograms, masks=masks)
    time = RunTime.of(run.tensors["step"])
    masks = run.masks.assign(column=time.column(run.masks["step"]))
    drawings: list[Drawing] = []
    with styled():
        if not run.histograms.empty:
            drawings.append(Drawing("gradient_histograms", _histograms(run, time)))
        if masks["jaccard_previous"].notna().any():
            drawings.append(Drawing("mask_overlap", draw_overlap(masks, time)))
            drawings.append(Drawing("overlap_by_layer", draw_overlap_by_layer(masks, time)))
        if masks["coverage"].notna().any():
            drawings.append(Drawing("coverage", draw_coverage(masks, time)))
        if run.tensors["bits_changed"].notna().any():
            drawings.append(Drawing("updates", _updates(run.tensors, time)))
        if run.learned["step"].nunique() > 1:
            drawings.append(Drawing("learned_masks", draw_learned_masks(run.learned)))
    return drawings


def _in_tensors(frame: pd.DataFrame, run: RunRecord) -> pd.DataFrame:
    """The rows whose step and tensor are in the table of tensors."""
    steps, tensors = (run.tensors[column].unique() for column in ("step", "tensor"))
    complete = frame["step"].isin(steps) & frame["tensor"].isin(tensors)
    return frame if complete.all() else frame[complete]


def _groups(frame: pd.DataFrame, shown: list[str]) -> np.ndarray:
    """The index of each row's layer group among those shown."""
    tensors = frame["tensor"].astype("category").cat
    indices = np.array([shown.index(layer_group(str(name))) for name in tensors.categories])
    return indices[tensors.codes.to_numpy()]


def _histograms(run: RunRecord, time: RunTime) -> Any:
    from matplotlib.colors import LogNorm

    present = {layer_group(str(name)) for name in run.tensors["tensor"].unique()}
    shown = [group for group in LAYER_GROUPS if group in present]
    counts, first = _counts(run.histograms, time, shown)
    entries = np.zeros((len(shown), len(time.centers)))
    indices = (_groups(run.tensors, shown), time.column(run.tensors["step"]))
    np.add.at(entries, indices, run.tensors["entries"].to_numpy(dtype=float))
    edges = _row_edge(np.arange(first, first + counts.shape[2] + 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / entries[:, :, None] / np.diff(edges)
    shares[(shares == 0) | ~np.isfinite(shares)] = np.nan
    figure, axes = panel_grid(len(shown), 2, 1.9, sharex=True, sharey=True)
    norm = LogNorm(_FAINTEST, max(2 * _FAINTEST, np.nanmax(shares)))
    for index, (axis, group) in enumerate(zip(axes, shown, strict=True)):
        mesh = axis.pcolormesh(
            time.edges, edges, shares[index].T, norm=norm, cmap="viridis", rasterized=True
        )
        _median_line(axis, time, counts[index], edges)
        axis.set_title(group, fontsize=9)
        axis.grid(False)
    axes[0].set_ylim(_lowest(counts, edges), edges[-1])
    for axis in axes:
        axis.set_ylabel("log₂ |gradient|")
    figure.colorbar(mesh, ax=axes, label="share of entries per octave", extend="min", aspect=30)
    figure.legend(handles=axes[0].lines, loc="outside lower center")
    return figure


def _counts(frame: pd.DataFrame, time: RunTime, shown: list[str]) -> tuple[np.ndarray, int]:
    """Entries by layer group, column and quarter of an octave; and the lowest such quarter."""
    mantissa, exponent = np.frexp(frame["low"].to_numpy(dtype=float))
    rows = 4 * (exponent.astype(np.int64) - 1) + np.rint(8 * mantissa - 4).astype(np.int64)
    first = int(rows.min())
    shape = (len(shown), len(time.centers), int(rows.max()) - first + 1)
    cell = np.ravel_multi_index(
        (_groups(frame, shown), time.column(frame["step"]), rows - first), shape
    )
    weights = frame["count"].to_numpy(dtype=float)
    return np.bincount(cell, weights, minlength=int(np.prod(shape))).reshape(shape), first


def _row_edge(rows: np.ndarray) -> np.ndarray:
    """log₂ of the lower edge: the quarters of an octave have equal lengths in |gradient|."""
    edges: np.ndarray = rows // 4 + np.log2(1 + rows % 4 / 4)
    return edges


def _lowest(counts: np.ndarray, edges: np.ndarray) -> float:
    """The lowest log₂ |gradient| to show: without the smallest 0.01 % of any group, which can trail
    far down."""
    by_group = counts.sum(1).cumsum(1)
    starts = [int(np.argmax(row >= 1e-4 * row[-1])) for row in by_group if row[-1]]
    return float(edges[min(starts)])


def _median_line(axis: Any, time: RunTime, counts: np.ndarray, edges: np.ndarray) -> None:
    from matplotlib.patheffects import Normal, Stroke

    running = counts.cumsum(1)
    rows = np.argmax(running >= running[:, -1:] / 2, axis=1)
    middle = np.where(running[:, -1] > 0, (edges[rows] + edges[rows + 1]) / 2, np.nan)
    outline = [Stroke(linewidth=2.4, foreground="white"), Normal()]
    alone = len(middle) == 1  # A single point would not be seen.
    axis.plot(
        time.edges if alone else time.centers,
        middle.repeat(2) if alone else middle,
        color="black",
        linewidth=1,
        label="median of the nonzero entries",
        path_effects=outline,
    )


def _updates(tensors: pd.DataFrame, time: RunTime) -> Any:
    tensors = tensors.assign(column=time.column(tensors["step"]))
    figure, (axis,) = panel_grid(1, 1, 2.5)
    for column, label, color, line, width in (
        ("bits_changed", "stored bits changed", BLUE, "-", 2.0),
        ("bf16_changed", "bits changed after rounding to bf16", ORANGE, "--", 1.6),
        ("stalled", "stalled: nonzero gradient, no change", VERMILION, ":", 1.6),
    ):
        share = 100 * mean_per(tensors, ["column"], column)
        style = {"color": color, "linestyle": line, "linewidth": width, "label": label}
        style["marker"] = time.marker
        axis.plot(time.centers[share.index], share, **style)
    axis.set(ylabel="share of entries (%)", ylim=(-2, 102))
    handles, labels = axis.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    add_caption(figure, [coinciding_note([axis])])
    return figure
