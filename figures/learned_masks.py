"""The masks of weights that a training learned: how they settle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltalens.figures.style import WIDTH

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["learned_masks"]


def learned_masks(learned: pd.DataFrame) -> Any:
    """A figure of the overlap with the step before and with the first, and of the weights that
    changed sides, over the steps; means over all layers, by their entries, and each layer in grey.

    Args:
        learned: the run's table `learned`.
    """
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 4.6), sharex=True)
    figure.set_layout_engine("constrained")
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
    above.set_ylabel("Jaccard index of the masks\nwith those of ...")
    below.set_ylabel("weights that changed sides\nsince ... (%)")
    below.set_xlabel("step")
    below.set_ylim(bottom=0)
    above.legend(loc="best")
    return figure


def _mean(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """Over layers, by their entries."""
    weighted = (rows[column] * rows["entries"]).groupby(rows["step"]).sum()
    mean: pd.Series[float] = weighted / rows["entries"].groupby(rows["step"]).sum()
    return mean
