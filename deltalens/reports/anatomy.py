"""What a reader should conclude from the anatomy of a delta, a sentence for each thing: the summary
of an inspection says all of them, and answers to a report's questions are made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltalens.reports.wording import and_others, concentrated, percent

__all__ = ["NEXT", "Anatomy", "cast", "changed", "concentration", "extremes", "most", "size"]

NEXT = (
    "How large a change is does not say how much it matters: `deltalens drop-study FT BASE -o "
    "STUDY` measures how much of it the model can lose."
)
"""What to do about it."""


@dataclass(frozen=True)
class Anatomy:
    """The anatomy of one tensor's delta, or of several together."""

    level: str
    """`overall`, `kind` (of projection), `layer` or `tensor`."""
    name: str
    entries: int
    metrics: Mapping[str, float]
    """As the records name them: `unchanged`, `relative_norm`, `quantile_0.99`, ..."""

    def get(self, metric: str) -> float:
        """Look up a metric.

        Args:
            metric: as the records name it.

        Returns:
            Its value; NaN if it was not measured.
        """
        return self.metrics.get(metric, math.nan)


def changed(whole: Anatomy) -> str:
    """Say how much of the model changed at all.

    Args:
        whole: the delta.

    Returns:
        A sentence; empty if that was not measured.
    """
    unchanged, entries = whole.get("unchanged"), f"{whole.entries:,} entries"
    if math.isnan(unchanged):
        return ""
    if unchanged == 1:
        return f"None of {entries} changed: the fine-tune is the base."
    if unchanged == 0:
        return f"Every one of {entries} changed."
    few = percent(unchanged)  # It may begin with a word.
    return (
        f"{few[0].upper()}{few[1:]} of {entries} are exactly as in the base; the other "
        f"{percent(1 - unchanged)} changed."
    )


def size(whole: Anatomy) -> str:
    """Say how large a delta is beside the weights.

    Args:
        whole: the delta.

    Returns:
        A sentence; empty if that was not measured, or if nothing changed.
    """
    norm, nearly_all = whole.get("relative_norm"), whole.get("quantile_0.99")
    if not math.isfinite(norm) or norm <= 0:
        return ""
    beside = (
        f"by root mean square, a change is {1 / norm:.3g} times smaller than a weight"
        if norm < 1
        else "by root mean square, a change is no smaller than a weight"
    )
    said = f"The delta's norm is {norm:.3g} times that of the base's weights: {beside}"
    if math.isfinite(nearly_all):
        said += f"; 99 % of the entries changed by at most about {nearly_all:.3g}"
    return f"{said}."


def concentration(whole: Anatomy) -> str:
    """Say how few entries hold most of a delta, beside a normal distribution.

    Args:
        whole: the delta.

    Returns:
        A sentence; empty if that was not measured, or if nothing changed.
    """
    return concentrated("delta", whole.get("energy_top_0.01"), whole.get("energy_top_0.1"))


def cast(whole: Anatomy) -> str:
    """Say what a cast to bf16 would lose.

    Args:
        whole: the delta.

    Returns:
        A sentence; empty if both models are stored in bf16.
    """
    lost = whole.get("vanishing_in_bf16")
    if math.isnan(lost):
        return ""
    if lost == 0:
        return "Casting both models to bf16 would lose none of the changed entries."
    return (
        f"Casting both models to bf16 would lose {percent(lost)} of the changed entries: they "
        "would be equal to the base's."
    )


def extremes(groups: Sequence[Anatomy]) -> tuple[float, float] | None:
    """Find the largest and the smallest change, relative to the weights.

    Args:
        groups: of one level.

    Returns:
        ‖δ‖ / ‖base‖ of the group that changed most, and of the one that changed least; None if
        there are not at least two to compare.
    """
    norms = [norm for group in groups if math.isfinite(norm := group.get("relative_norm"))]
    return (max(norms), min(norms)) if len(norms) > 1 else None


def most(groups: Sequence[Anatomy], what: str) -> str:
    """Say where a delta is largest, relative to the weights, and where it is smallest.

    Args:
        groups: of one level.
        what: one of them is.

    Returns:
        A sentence; empty if there are not at least two to compare.
    """
    found = extremes(groups)
    if found is None:
        return ""
    high, low = found
    if high == low:
        return f"Relative to its weights, every {what} changed alike (‖δ‖ / ‖base‖ = {high:.3g})."
    named = {
        norm: [group.name for group in groups if group.get("relative_norm") == norm]
        for norm in found
    }
    least = f"least {and_others(named[low])} ({low:.3g})"
    if low == 0:
        still = len(named[low])
        least = f"{and_others(named[low])} {'are' if still > 1 else 'is'} exactly as in the base"
    return (
        f"Relative to its weights, the {what} that changed most is {and_others(named[high])} "
        f"(‖δ‖ / ‖base‖ = {high:.3g}), and {least}."
    )
