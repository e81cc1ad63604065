"""How summaries and reports write numbers and lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

__all__ = [
    "and_others",
    "concentrated",
    "instead",
    "name_of_blocks",
    "number",
    "percent",
    "plus_minus",
]

_NAMED = 3
_ALIKE = 0.1
"""Relative difference from a normal distribution that is called none."""


def number(value: float) -> str:
    """Write a number with four decimals, or four digits if it is very small or large.

    Args:
        value: any; NaN is written `nan`.

    Returns:
        Its text.

    Example:
        >>> number(0.25), number(0.00025), number(0.0)
        ('0.2500', '0.00025', '0')
    """
    if value == 0 or math.isnan(value):
        return f"{value:g}"
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}"


def instead(metric: str, of: str, value: float, where: str) -> str:
    """Say why a summary speaks of another metric than the leading one.

    Args:
        metric: of which it speaks.
        of: the leading one.
        value: which that has everywhere.
        where: for what: `for every model`.

    Returns:
        A sentence.
    """
    return f"{of} is {number(value)} {where}, so what follows is about {metric}"


def plus_minus(value: float, error: float) -> str:
    """Write a number with its uncertainty.

    Args:
        value: any.
        error: NaN if unknown.

    Returns:
        `0.5000 ± 0.0100`, or the number alone.
    """
    return number(value) + (f" ± {number(error)}" if math.isfinite(error) else "")


def percent(share: float) -> str:
    """Write a share in per cent, with as many digits as a reader needs.

    Args:
        share: 1 is all.

    Returns:
        Its text: `70 %`, `0.5 %`, `under 0.01 %`; what is not all is never `100 %`.
    """
    if 0 < share < 1e-4:
        return "under 0.01 %"
    if 1 - 1e-4 < share < 1:
        return "over 99.99 %"
    return f"{100 * share:.{4 if 0.999 < share < 1 else 3}g} %"


def and_others(names: Sequence[str]) -> str:
    """List names, at most three.

    Args:
        names: in the order of the list.

    Returns:
        `a, b, c and 2 others`.
    """
    named = ", ".join(names[:_NAMED])
    return named if len(names) <= _NAMED else f"{named} and {len(names) - _NAMED} others"


def concentrated(what: str, first: float, tenth: float) -> str:
    """Say how few entries hold most of something, beside a normal distribution.

    Args:
        what: a delta, a gradient.
        first: the share of its squared norm in the largest 1 % of its entries.
        tenth: the same of the largest 10 %.

    Returns:
        A sentence; empty if one of the two is not finite.
    """
    if not (math.isfinite(first) and math.isfinite(tenth)):
        return ""
    usual = _energy_of_normal(0.1)
    if abs(tenth - usual) <= _ALIKE * usual:
        beside = "about as in a normal distribution, so no few entries carry it"
    elif tenth > usual:
        beside = "more than in a normal distribution, so comparatively few entries carry it"
    else:
        beside = "less than in a normal distribution, so it is spread over many entries"
    return (
        f"Of the {what}'s squared norm, the largest 1 % of entries hold {percent(first)}, the "
        f"largest 10 % {percent(tenth)}: {beside} ({percent(_energy_of_normal(0.01))} and "
        f"{percent(usual)})."
    )


def _energy_of_normal(top: float) -> float:
    """The share of the squared norm in the largest entries of a normal distribution: the integral
    of x^2 over both tails."""
    normal = NormalDist()
    edge = normal.inv_cdf(1 - top / 2)
    return 2 * edge * normal.pdf(edge) + top


def name_of_blocks(group: str) -> str:
    """Name a group of blocks as a person would.

    Args:
        group: as the records name it.

    Returns:
        `block 7`, or `blocks 4-7`.
    """
    return f"blocks {group}" if "-" in group else f"block {group}"
