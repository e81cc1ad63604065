"""Weight masks that a training learns: how they settle over the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltalens.errors import Lines
from deltalens.figures.coinciding import coinciding_note
from deltalens.figures.style import BLUE, GREEN, VERMILION, add_caption, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["draw_learned_masks"]


def draw_learned_masks(learned: pd.DataFrame) -> Figure:
    """Draw how much the masks overlap with those of the previous and of the first logged step, and
    how many weights have flipped since. Colored lines are means over all layers, weighted by
    entries; gray lines are single layers. Where a layer's number of weights changes (masks with a
    threshold, or sparse tuning that ranks all layers together), the share is drawn below: of those
    removed, or of those in the mask where these are the fewer.

    Args:
        learned: the run's table `learned`.

    Returns:
        The figure.
    """
    few = bool(2 * learned["kept"].sum() < learned["entries"].sum())
    kept = learned["kept"] / learned["entries"]
    shares = learned.assign(share=100 * (kept if few else 1 - kept))
    if few:  # Two empty masks have all in common, and say nothing.
        learned = learned[learned["kept"] > 0]
    # With a mask ratio each layer keeps the same number of weights throughout.
    varies = bool((shares.groupby("layer")["kept"].nunique() > 1).any())
    figure = new_figure(4.6 + 1.8 * varies, layout="constrained")
    axes = figure.subplots(2 + varies, 1, sharex=True)
    above, below = axes[:2]
    for against, color, line in (("previous", BLUE, "-"), ("first", VERMILION, "--")):
        name = f"with the {against} logged step"
        removed = learned.assign(
            flipped=100 * learned[f"flipped_{against}"] / learned["entries"],
            overlap=learned[f"jaccard_{against}"],
        ).dropna(subset=["flipped"])
        for axis, column in ((above, "overlap"), (below, "flipped")):
            for _, layer in removed.groupby("layer"):
                axis.plot(layer["step"], layer[column], color="0.85", linewidth=0.6, zorder=1)
            mean = _mean(removed, column)
            style = {"color": color, "linestyle": line, "linewidth": 1.8 if line == "-" else 1.4}
            axis.plot(mean.index, mean, label=name, zorder=2, **style)
    chance = _mean(learned.dropna(subset=["chance_first"]), "chance_first")
    above.plot(chance.index, chance, color="0.4", linestyle=":", label="chance")
    above.set_ylabel(Lines("Jaccard index", "of the masks"))
    sides = "in the mask and not" if few else "kept and removed"
    below.set_ylabel(Lines("weights flipped between", f"{sides} (%)"))
    axes[-1].set_xlabel("optimizer step")
    below.set_ylim(bottom=0)
    if varies:
        for _, layer in shares.groupby("layer"):
            axes[2].plot(layer["step"], layer["share"], color="0.85", linewidth=0.6, zorder=1)
        mean = _mean(shares, "share")
        axes[2].plot(mean.index, mean, color=GREEN, linewidth=1.6, zorder=2)
        axes[2].set_ylabel("weights in the mask (%)" if few else "removed weights (%)")
    above.legend(loc="best")
    add_caption(figure, ["Gray: single layers.", coinciding_note(axes)])
    return figure


def _mean(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """The mean over layers at each step, weighted by entries."""
    weighted = (rows[column] * rows["entries"]).groupby(rows["step"]).sum()
    mean: pd.Series[float] = weighted / rows["entries"].groupby(rows["step"]).sum()
    return mean
