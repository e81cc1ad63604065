"""How the masks of the largest gradients overlap from step to step, beyond what two random masks of
the same density would have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.catalog.layers import block_rank
from deltalens.errors import Lines
from deltalens.figures.coinciding import coinciding_note
from deltalens.figures.layer_names import ticks_for
from deltalens.figures.mft_panels import band
from deltalens.figures.run_time import RunTime, mean_per, panel_grid
from deltalens.figures.style import BLUE, ORANGE, PALETTE, add_caption, add_legend
from deltalens.names import block_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["above_chance", "draw_coverage", "draw_overlap", "draw_overlap_by_layer"]

_LABEL = Lines("overlap above chance:", "(J − chance) / (1 − chance)")
_PLAIN = Lines("overlap:", "Jaccard index J")
_MEANING = (
    "J: Jaccard index of two masks; chance: that of two random masks as dense. 0: as two random "
    "masks; 1: the same mask."
)
_UNKNOWN = "J: Jaccard index of two masks. This run does not say what chance is."
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def above_chance(masks: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Reckon how far masks overlap beyond chance.

    Args:
        masks: a run's table `masks`.

    Returns:
        The table with `overlap_previous` and `overlap_first`: (J - chance) / (1 - chance), NaN
        where all entries are in both masks by chance already; and whether chance is known wherever
        J is. If it is not, they are J itself.
    """
    sides = ("previous", "first")
    known = all(
        bool(masks[f"chance_{side}"][masks[f"jaccard_{side}"].notna()].notna().all())
        for side in sides
    )
    found = {}
    for side in sides:
        overlap = masks[f"jaccard_{side}"].astype(float)
        chance = masks[f"chance_{side}"].astype(float)
        found[f"overlap_{side}"] = (
            (overlap - chance) / (1 - chance).where(chance < 1) if known else overlap
        )
    return masks.assign(**found), known


def draw_overlap(masks: pd.DataFrame, time: RunTime) -> Figure:
    """Draw the overlap over the steps, a panel for each mask ratio on one scale.

    Args:
        masks: a run's table `masks`, with the `column` of `time`.
        time: the steps.

    Returns:
        The figure.
    """
    masks, known = above_chance(masks)
    ratios = _compared(masks)
    figure, axes = panel_grid(len(ratios), 3, 2.6, sharex=True, sharey=known)
    for axis, ratio in zip(axes, ratios, strict=True):
        rows = masks[masks["mask_ratio"] == ratio]
        for side, color, line, width in (
            ("first", ORANGE, "--", 1.4),
            ("previous", BLUE, "-", 1.8),
        ):
            column = f"overlap_{side}"
            logged = rows[rows[column].notna()]
            tensors = logged.groupby(["column", "tensor"], observed=True)[column].mean()
            low, high = (tensors.groupby("column").quantile(q) for q in (0.1, 0.9))
            mean = mean_per(logged, ["column"], column)
            steps = time.centers[mean.index]
            axis.fill_between(steps, low, high, **band(color, line))
            style = {"color": color, "linestyle": line, "linewidth": width}
            axis.plot(steps, mean, label=f"with the {side} logged step", **style)
        if known:
            axis.axhline(0, linestyle=":", color="0.2", linewidth=1, label="chance")
        chance = mean_per(rows.assign(all=0), ["all"], "chance_previous")
        axis.set_title(_titled(ratio, chance), fontsize=9)
        if not known or axis.get_subplotspec().is_first_col():
            axis.set_ylabel(_LABEL if known else _PLAIN, fontsize=8)
    _widen(axes, 0.1)
    handles, labels = axes[0].get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    lines = "Lines: means over entries. Bands: 10th to 90th percentile of the tensors."
    add_caption(figure, [_MEANING if known else _UNKNOWN, lines, coinciding_note(axes)])
    return figure


def _titled(ratio: float, chance: pd.Series[float]) -> str:
    return Lines(
        f"mask ratio {ratio:g}", *(f"(chance: J = {value:.2g})" for value in chance.iloc[:1])
    )


def _compared(masks: pd.DataFrame) -> list[float]:
    """The mask ratios at which a step was compared with a previous one."""
    return sorted(masks["mask_ratio"][masks["jaccard_previous"].notna()].unique())


def _widen(axes: list[Any], least: float) -> None:
    """Show at least so much of each y-axis: noise around a level looks as small as it is."""
    for axis in axes:
        low, high = axis.get_ylim()
        more = max(0.0, least - (high - low)) / 2
        axis.set_ylim(low - more, high + more)


def draw_overlap_by_layer(masks: pd.DataFrame, time: RunTime) -> Figure:
    """Draw the overlap with the previous logged step by layer, a panel for each mask ratio; all
    have one color scale, which begins at chance.

    Args:
        masks: a run's table `masks`, with the `column` of `time`.
        time: the steps.

    Returns:
        The figure.
    """
    masks, known = above_chance(masks)
    names = masks["tensor"].astype("category").cat
    blocks = np.array([block_of(str(name)) for name in names.categories])
    masks = masks.assign(block=blocks[names.codes.to_numpy()])
    order = sorted(set(blocks), key=block_rank)
    ratios = _compared(masks)
    height = min(7.0 if len(ratios) <= 3 else 4.5, max(2.8, 0.16 * len(order) + 1.2))
    figure, axes = panel_grid(len(ratios), 3, height, sharex=True, sharey=True)
    tables = {}
    for ratio in ratios:
        rows = masks[masks["mask_ratio"] == ratio]
        table = mean_per(rows, ["block", "column"], "overlap_previous").unstack("column")
        table = table.reindex(index=order, columns=range(len(time.centers)))
        tables[ratio] = table.to_numpy(dtype=float)
    finite = np.concatenate([table[np.isfinite(table)] for table in tables.values()])
    low, high = np.percentile(finite, [1, 96]) if finite.size else (0.0, 1.0)
    low = min(0.0, low) if known else low
    for axis, (ratio, cells) in zip(axes, tables.items(), strict=True):
        mesh = axis.pcolormesh(
            time.edges,
            np.arange(len(order) + 1) - 0.5,
            cells,
            vmin=low,
            vmax=max(high, low + 0.01),
            cmap="viridis",
            rasterized=True,
        )
        rows = masks[masks["mask_ratio"] == ratio].assign(all=0)
        axis.set_title(_titled(ratio, mean_per(rows, ["all"], "chance_previous")), fontsize=9)
        axis.set_facecolor("0.88")
        axis.grid(visible=False)
        axis.tick_params(axis="y", labelsize=8)
    shown, labels = ticks_for(order, height - 0.9)
    axes[0].set_yticks(shown, labels)
    axes[0].set_ylabel("layer")
    axes[0].invert_yaxis()
    bar = figure.colorbar(mesh, ax=axes, location="right", extend="both", aspect=30)
    bar.set_label(_LABEL if known else _PLAIN, fontsize=8)
    gray = (
        "Gray: not compared at this step."
        if any(np.isnan(t).any() for t in tables.values())
        else ""
    )
    between = "Between each logged step and the previous one, mean over the layer's entries."
    add_caption(figure, [between, _MEANING if known else _UNKNOWN, gray])
    return figure


def draw_coverage(masks: pd.DataFrame, time: RunTime) -> Figure:
    """Draw the share of entries that were in a mask at least once, a line for each mask ratio.

    Args:
        masks: a run's table `masks`, with the `column` of `time`.
        time: the steps.

    Returns:
        The figure.
    """
    figure, (axis,) = panel_grid(1, 1, 2.5)
    for index, ratio in enumerate(sorted(masks["mask_ratio"].unique())):
        share = 100 * mean_per(masks[masks["mask_ratio"] == ratio], ["column"], "coverage")
        style = {
            "color": PALETTE[index % len(PALETTE)],
            "linestyle": _DASHES[index % len(_DASHES)],
            "linewidth": max(1.2, 2.0 - 0.2 * index),
            "marker": time.marker,
        }
        axis.plot(time.centers[share.index], share, label=f"{ratio:g}", **style)
    axis.set(ylabel="entries in the mask at least once (%)", ylim=(0, 102))
    figure.legend(title="mask ratio", loc="outside right center", handlelength=2.8)
    add_caption(figure, [coinciding_note([axis])])
    return figure
