"""How summaries and reports write numbers and lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["and_others", "number", "percent", "plus_minus"]

_NAMED = 3


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
