"""A probe's run: gradient magnitudes, the overlap of their masks, and updates over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.catalog.layers import LAYER_GROUPS, layer_group
from deltalens.errors import Lines, RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.learned_masks import draw_learned_masks
from deltalens.figures.style import BLUE, ORANGE, PALETTE, VERMILION, new_figure, styled
from deltalens.io.records import RunRecord, find_run, load_run
from deltalens.names import block_of, is_block

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_COLUMNS = 400
"""With more logged steps than this, neighbors are averaged."""
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
    time = _Time.of(run.tensors["step"])
    masks = run.masks.assign(column=time.column(run.masks["step"]))
    drawings: list[Drawing] = []
    with styled():
        if not run.histograms.empty:
            drawings.append(Drawing("gradient_histograms", _histograms(run, time)))
        if masks["jaccard_previous"].notna().any():
            drawings.append(Drawing("mask_overlap", _overlap(masks, time)))
            drawings.append(Drawing("overlap_by_layer", _by_layer(masks, time)))
        if masks["coverage"].notna().any():
            drawings.append(Drawing("coverage", _coverage(masks, time)))
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


@dataclass(frozen=True)
class _Time:
    """The x-axis: steps grouped into at most `_COLUMNS` columns."""

    starts: np.ndarray
    """First step of each column."""
    centers: np.ndarray
    """Mean step of each column."""
    edges: np.ndarray
    """Edges of the columns, in steps: one more than there are columns."""

    @staticmethod
    def of(steps: pd.Series[int]) -> _Time:
        logged = np.unique(steps.to_numpy(dtype=np.int64))
        each = -(-len(logged) // _COLUMNS)
        parts = [logged[start : start + each] for start in range(0, len(logged), each)]
        starts = np.array([part[0] for part in parts])
        centers = np.array([part.mean() for part in parts])
        gaps = starts[1:] - [part[-1] for part in parts[:-1]]
        half = float(np.median(gaps)) / 2 if len(gaps) else 0.5
        edges = np.append(starts - half, logged[-1] + half)
        return _Time(starts, centers, edges)

    def column(self, steps: pd.Series[int]) -> np.ndarray:
        """The column of each step."""
        return np.searchsorted(self.starts, steps.to_numpy(dtype=np.int64), side="right") - 1


def _grid(panels: int, across: int, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """A figure with a number of panels, `across` to a row; and their axes."""
    across = min(across, panels)
    down = -(-panels // across)
    figure = new_figure(height * down + 0.5, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, **options)
    for spare in axes.flat[panels:]:
        spare.set_visible(False)
    for axis in axes.flat[max(0, panels - across) : panels]:
        axis.tick_params(labelbottom=True)
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    return figure, list(axes.flat[:panels])


def _per(frame: pd.DataFrame, keys: list[str], column: str) -> pd.Series[float]:
    """The mean of a column within the keys, weighted by entries; empty rows are left out."""
    logged = frame[frame[column].notna()]
    weighted = logged[keys].assign(
        total=logged[column].astype(float) * logged["entries"], entries=logged["entries"]
    )
    sums = weighted.groupby(keys, observed=True)[["total", "entries"]].sum()
    return sums["total"] / sums["entries"]


def _groups(frame: pd.DataFrame, shown: list[str]) -> np.ndarray:
    """The index of each row's layer group among those shown."""
    tensors = frame["tensor"].astype("category").cat
    indices = np.array([shown.index(layer_group(str(name))) for name in tensors.categories])
    return indices[tensors.codes.to_numpy()]


def _histograms(run: RunRecord, time: _Time) -> Any:
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
    figure, axes = _grid(len(shown), 2, 1.9, sharex=True, sharey=True)
    norm = LogNorm(_FAINTEST, max(2 * _FAINTEST, np.nanmax(shares)))
    for index, (axis, group) in enumerate(zip(axes, shown, strict=True)):
        mesh = axis.pcolormesh(
            time.edges, edges, shares[index].T, norm=norm, cmap="viridis", rasterized=True
        )
        _median_line(axis, time, counts[index], edges)
        axis.set_title(group, fontsize=9)
        axis.grid(False)
    axes[0].set_ylim(_lowest(counts, edges), edges[-1])
    figure.supylabel("log₂ |gradient|", fontsize=9)
    figure.colorbar(mesh, ax=axes, label="share of entries per octave", extend="min", aspect=30)
    figure.legend(handles=axes[0].lines, loc="outside lower center")
    return figure


def _counts(frame: pd.DataFrame, time: _Time, shown: list[str]) -> tuple[np.ndarray, int]:
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


def _median_line(axis: Any, time: _Time, counts: np.ndarray, edges: np.ndarray) -> None:
    from matplotlib.patheffects import Normal, Stroke

    running = counts.cumsum(1)
    rows = np.argmax(running >= running[:, -1:] / 2, axis=1)
    middle = np.where(running[:, -1] > 0, (edges[rows] + edges[rows + 1]) / 2, np.nan)
    outline = [Stroke(linewidth=2.4, foreground="white"), Normal()]
    axis.plot(
        time.centers,
        middle,
        color="black",
        linewidth=1,
        label="median of the nonzero entries",
        path_effects=outline,
    )


def _overlap(masks: pd.DataFrame, time: _Time) -> Any:
    ratios = _compared(masks)
    figure, axes = _grid(len(ratios), 3, 2.4, sharex=True)
    for axis, ratio in zip(axes, ratios, strict=True):
        rows = masks[masks["mask_ratio"] == ratio]
        for column, label, color in (
            ("jaccard_first", "with the first logged step", ORANGE),
            ("jaccard_previous", "with the previous logged step", BLUE),
        ):
            logged = rows[rows[column].notna()]
            tensors = logged.groupby(["column", "tensor"], observed=True)[column].mean()
            low, high = (tensors.groupby("column").quantile(q) for q in (0.1, 0.9))
            mean = _per(logged, ["column"], column)
            steps = time.centers[mean.index]
            axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            axis.plot(steps, mean, color=color, linewidth=1.3, label=label)
        chance = _per(rows, ["column"], "chance_previous")
        axis.plot(time.centers[chance.index], chance, "--", color="0.2", lw=1, label="chance")
        axis.set_title(f"mask ratio {ratio:g}", fontsize=9)
        _widen(axis, 0.1)
    figure.supylabel("Jaccard index of the masks", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3)
    legend.set_title("lines: means over entries; bands: 10th to 90th percentile of the tensors")
    return figure


def _compared(masks: pd.DataFrame) -> list[float]:
    """The mask ratios at which a step was compared with a previous one."""
    return sorted(masks["mask_ratio"][masks["jaccard_previous"].notna()].unique())


def _widen(axis: Any, least: float) -> None:
    """Show at least so much of the y-axis, so that noise around a level looks as small as it is."""
    low, high = axis.get_ylim()
    more = max(0.0, least - (high - low)) / 2
    axis.set_ylim(low - more, high + more)


def _by_layer(masks: pd.DataFrame, time: _Time) -> Any:
    names = masks["tensor"].astype("category").cat
    blocks = np.array([block_of(str(name)) for name in names.categories])
    masks = masks.assign(block=blocks[names.codes.to_numpy()])
    order = sorted(set(blocks), key=_rank)
    ratios = _compared(masks)
    height = min(7.0 if len(ratios) <= 3 else 4.5, max(2.2, 0.16 * len(order) + 1.2))
    figure, axes = _grid(len(ratios), 3, height, sharex=True, sharey=True)
    for axis, ratio in zip(axes, ratios, strict=True):
        rows = masks[masks["mask_ratio"] == ratio]
        table = _per(rows, ["block", "column"], "jaccard_previous").unstack("column")
        cells = table.reindex(index=order, columns=range(len(time.centers))).to_numpy(dtype=float)
        low, high = np.nanpercentile(cells, [1, 99])
        mesh = axis.pcolormesh(
            time.edges,
            np.arange(len(order) + 1) - 0.5,
            cells,
            vmin=low,
            vmax=max(high, low + 0.01),
            cmap="viridis",
            rasterized=True,
        )
        chance = float(_per(rows.assign(all=0), ["all"], "chance_previous").iloc[0])
        axis.set_title(Lines(f"mask ratio {ratio:g}", f"(chance {chance:.2g})"), fontsize=9)
        axis.grid(False)
        axis.tick_params(axis="y", labelsize=8)
        bar = figure.colorbar(mesh, ax=axis, orientation="horizontal", extend="both", aspect=14)
        bar.ax.tick_params(labelsize=8)
    every = -(-len(order) // int(6 * (height - 0.9)))
    shown = range(0, len(order), every)
    labels = _short(order)
    axes[0].set_yticks(shown, [labels[index] for index in shown])
    axes[0].invert_yaxis()
    figure.supxlabel("Jaccard index with the mask of the previous logged step", fontsize=9)
    return figure


def _rank(block: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key: embeddings, blocks by number, the rest, the output head."""
    ranks = {"embeddings": 0, "output head": 3}
    rank = 1 if is_block(block) else ranks.get(layer_group(block), 2)
    return rank, [
        # int takes neither superscripts nor thousands of digits.
        (int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part)
        for part in block.split(".")
    ]


def _short(names: list[str]) -> list[str]:
    """Names without their most common beginning and without `.weight`; of a long one the end."""
    short = [name.removesuffix(".weight") for name in names]
    while True:
        heads = [name.partition(".")[0] for name in short]
        head = max(heads, key=heads.count) + "."
        rests = [name.removeprefix(head) for name in short]
        if rests == short or len(set(rests)) < len(rests) or any(r[0].isdigit() for r in rests):
            return [name if len(name) <= 24 else f"…{name[-23:]}" for name in short]
        short = rests


def _coverage(masks: pd.DataFrame, time: _Time) -> Any:
    figure, (axis,) = _grid(1, 1, 2.5)
    for index, ratio in enumerate(sorted(masks["mask_ratio"].unique())):
        share = 100 * _per(masks[masks["mask_ratio"] == ratio], ["column"], "coverage")
        color = PALETTE[index % len(PALETTE)]
        axis.plot(time.centers[share.index], share, color=color, label=f"{ratio:g}")
    axis.set(ylabel="entries in the mask at least once (%)", ylim=(0, 102))
    figure.legend(title="mask ratio", loc="outside right center")
    return figure


def _updates(tensors: pd.DataFrame, time: _Time) -> Any:
    tensors = tensors.assign(column=time.column(tensors["step"]))
    figure, (axis,) = _grid(1, 1, 2.5)
    for column, label, color in (
        ("bits_changed", "stored bits changed", BLUE),
        ("bf16_changed", "bits changed after rounding to bf16", ORANGE),
        ("stalled", "stalled: nonzero gradient, no change", VERMILION),
    ):
        share = 100 * _per(tensors, ["column"], column)
        axis.plot(time.centers[share.index], share, color=color, linewidth=1.3, label=label)
    axis.set(ylabel="share of entries (%)", ylim=(-2, 102))
    figure.legend(loc="outside lower center", ncols=3)
    return figure
