"""What a probe's run answers: how large the gradients were, how few entries held most of them,
whether these stayed the same, and what a step changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from deltalens.io.records import RunRecord
from deltalens.reports.answers.answer import UNKNOWN, Answer
from deltalens.reports.run import RunSummary, summarize_run
from deltalens.reports.wording import concentrated, percent

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["gradient_answers"]

_MOSTLY, _HARDLY = 0.5, 0.05
"""(J - chance) / (1 - chance) from which masks are mostly, and below which hardly, the same."""


def gradient_answers(run: RunRecord) -> Iterator[Answer]:
    """Answer how the gradients were distributed, how steady their largest entries were, and how
    much of the parameters a step changed.

    Args:
        run: finished or not.

    Returns:
        The answers.
    """
    summary = summarize_run(run)
    if not summary.steps:
        said = "No step is logged yet."
        yield Answer("gradients", UNKNOWN, said, "nothing to measure")
        return
    yield _size(run, summary)
    whole = summary.groups[0]
    if said := concentrated("gradient", whole.energy_top_1, whole.energy_top_10):
        doubt = f"{_over(summary, math.nan)}, from histograms with four bins an octave"
        yield Answer("gradients", percent(whole.energy_top_10), said, doubt)
    if steady := _steadiness(run, summary):
        yield steady
    if math.isfinite(whole.bits_changed):
        yield _updates(summary)


def _size(run: RunRecord, summary: RunSummary) -> Answer:
    whole, *groups = summary.groups
    norms = (run.tensors["norm"].astype(float) ** 2).groupby(run.tensors["step"]).sum(skipna=False)
    steps = norms.sort_index().iloc[-summary.averaged :] ** 0.5
    spread = float(steps.std(skipna=False)) if len(steps) > 1 else math.nan
    norm = float(steps.mean(skipna=False))
    finite = {group.group: group.norm for group in groups or [whole] if math.isfinite(group.norm)}
    said = (
        f"Half of the gradient's entries were smaller than {whole.median:.2g} in magnitude, "
        if math.isfinite(whole.median)
        else "No entry of the gradient was a normal number, "
    )
    said += f"{percent(whole.zeros)} exactly 0"
    if len(finite) > 1:
        most, least = max(finite, key=finite.__getitem__), min(finite, key=finite.__getitem__)
        said += (
            f". Most of it was in {_part(most)} (norm {finite[most]:.3g}), least in {_part(least)} "
            f"({finite[least]:.3g})"
            if finite[most] != finite[least]
            else f". Every group's gradient had the norm {finite[most]:.3g}"
        )
    if not math.isfinite(norm):
        said += ". Some gradients were NaN or infinite: see the warnings"
        return Answer("gradients", UNKNOWN, f"{said}.", "the norm is not a number")
    return Answer("gradients", f"norm {norm:.3g}", f"{said}.", _over(summary, spread))


def _part(group: str) -> str:
    return group if group in ("attention",) else f"the {group}"


def _steadiness(run: RunRecord, summary: RunSummary) -> Answer | None:
    whole = summary.groups[0]
    masks = [mask for mask in whole.masks if math.isfinite(mask.overlap)]
    if not masks:
        return None
    # The largest gradients alone: what GMT would train.
    mask = max(masks, key=lambda each: each.mask_ratio)
    spread = _spread(run.masks, mask.mask_ratio, summary.averaged)
    times = f", {mask.overlap / mask.chance:.2g} times chance" if mask.chance else ""
    said = (
        f"The {percent(1 - mask.mask_ratio)} of entries with the largest gradients shared a "
        f"Jaccard index of {mask.overlap:.3f} with those of the logged step before "
        f"({mask.chance:.3f} by chance{times})"
    )
    if mask.chance < 1:
        said += f": {_beyond((mask.overlap - mask.chance) / (1 - mask.chance))}"
    if math.isfinite(mask.coverage):
        said += f"; {percent(mask.coverage)} of all entries were among them at least once"
    return Answer("gradients", f"{mask.overlap:.3f}", f"{said}.", _over(summary, spread))


def _beyond(above: float) -> str:
    """What an overlap says, from how far it lies between chance (0) and equal masks (1)."""
    if above >= _MOSTLY:
        return "mostly the same entries from step to step"
    if above >= _HARDLY:
        return "partly the same entries from step to step"
    return "hardly more of the same entries than at random"


def _updates(summary: RunSummary) -> Answer:
    whole = summary.groups[0]
    said = f"A step changed the stored bits of {percent(whole.bits_changed)} of the entries"
    if math.isfinite(whole.bf16_changed):
        said += f", and would change {percent(whole.bf16_changed)} if they were stored in bf16"
    if math.isfinite(whole.stalled):
        said += (
            f"; {percent(whole.stalled)} stalled: they had a gradient, and the update was lost in "
            "rounding"
            if whole.stalled
            else "; none that had a gradient stalled"
        )
    return Answer("gradients", percent(whole.bits_changed), f"{said}.", _over(summary, math.nan))


def _spread(masks: pd.DataFrame, ratio: float, last: int) -> float:
    """The standard deviation over the last logged steps of the masks' mean overlap."""
    rows = masks[(masks["mask_ratio"] == ratio) & masks["jaccard_previous"].notna()]
    overlap, weights = rows["jaccard_previous"].astype(float), rows["entries"].astype(float)
    by_step = rows["step"]
    sums = (overlap * weights).groupby(by_step).sum() / weights.groupby(by_step).sum()
    means = [float(mean) for mean in sums.sort_index() if math.isfinite(mean)][-last:]
    return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


def _over(summary: RunSummary, spread: float) -> str:
    if summary.averaged < 2:
        return f"the last of {summary.steps:,} logged steps alone, so its spread is unknown"
    last = f"mean of the last {summary.averaged:,} of {summary.steps:,} logged steps"
    return f"{last}, standard deviation {spread:.2g}" if math.isfinite(spread) else last
