"""The masks of weights that a training learned: how they settle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltalens.errors import Lines
from deltalens.figures.style import new_figure

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["learned_masks"]


def learned_masks(learned: pd.DataFrame) -> Any:
    """A figure of the overlap with the step before and with the first, and of the weights that
    changed sides, over the steps; means over all layers, by their entries, and each layer in gray.
    Where masks have a threshold, the share that is removed is learned, and drawn below.

    Args:
        learned: the run's table `learned`.
    """
    shares = learned.assign(share=100 * (1 - learned["kept"] / learned["entries"]))
    # With a ratio each layer keeps the same number of weights throughout.
    varies = bool((shares.groupby("layer")["kept"].nunique() > 1).any())
    figure = new_figure(4.6 + 1.8 * varies, layout="constrained")
    axes = figure.subplots(2 + varies, 1, sharex=True)
    above, below = axes[:2]
    for against, color in (("previous", "#0072B2"), ("first", "#D55E00")):
        name = "the step before" if against == "previous" else "the first step"
        removed = learned.assign(
            flipped=100 * learned[f"flipped_{against}"] / learned["entries"],
            overlap=learned[f"jaccard_{against}"],
        ).dropna(subset=["flipped"])
        for axis, column in ((above, "overlap"), (below, "flipped")):
            for _, layer in removed.groupby("layer"):
                axis.plot(layer["step"], layer[column], color="0.85", linewidth=0.6, zorder=1)
            mean = _mean(removed, column)
            axis.plot(mean.index, mean, color=color, linewidth=1.6, label=name, zorder=2)
    chance = _mean(learned.dropna(subset=["chance_first"]), "chance_first")
    above.plot(chance.index, chance, color="0.4", linestyle=":", label="by chance")
    above.set_ylabel(Lines("Jaccard index of the masks", "with those of ..."))
    below.set_ylabel(Lines("weights that changed sides", "since ... (%)"))
    axes[-1].set_xlabel("step")
    below.set_ylim(bottom=0)
    if varies:
        for _, layer in shares.groupby("layer"):
            axes[2].plot(layer["step"], layer["share"], color="0.85", linewidth=0.6, zorder=1)
        mean = _mean(shares, "share")
        axes[2].plot(mean.index, mean, color="#009E73", linewidth=1.6, zorder=2)
        axes[2].set_ylabel("removed weights (%)")
    above.legend(loc="best")
    return figure


def _mean(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """Over layers, by their entries."""
    weighted = (rows[column] * rows["entries"]).groupby(rows["step"]).sum()
    mean: pd.Series[float] = weighted / rows["entries"].groupby(rows["step"]).sum()
    return mean
