"""Small tables of text, as summaries contain them, statistics over seeds, and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Heading", "Table", "is_finite", "over_seeds", "ranks"]


@dataclass(frozen=True)
class Heading:
    """The head of a column, and what it means."""

    head: str
    meaning: str
    unit: str
    """Of its cells."""
    column: str
    """Where the records have the numbers."""

    @property
    def legend(self) -> str:
        """A line below the table: `heading: meaning (unit; column)`."""
        return f"{' '.join(self.head.split())}: {self.meaning} ({self.unit}; {self.column})"


@dataclass(frozen=True)
class Table:
    """A table of text: a title, column names, and rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[str, ...] = ()
    """Lines below it: what its columns mean, and those of the tables before it."""


def is_finite(values: pd.Series[float]) -> pd.Series[bool]:
    """Tell which values are finite numbers.

    Returns:
        A series of booleans with the same index; an empty series for an empty one.
    """
    # NaN is not between the infinities either.
    return values.astype(float).between(-math.inf, math.inf, inclusive="neither")


def over_seeds(groups: Any, how: Literal["mean", "std", "min", "max"] = "mean") -> pd.Series[float]:
    """Reduce each group of values to one number.

    A NaN among the values makes the result NaN: pandas would skip it, and present the mean of the
    others as the mean of all. The deviation of equal values is exactly 0, without the rounding of
    their mean.

    Args:
        groups: a pandas `groupby` of one column of numbers.
        how: the statistic.

    Returns:
        One number per group.
    """
    import numpy as np

    def reduced(values: Any) -> Any:
        if how == "std" and len(values) > 1 and (values == values.iloc[0]).all():
            return 0.0
        return getattr(values, how)(skipna=False)

    with np.errstate(invalid="ignore"):  # The deviation from infinity is NaN.
        statistics: pd.Series[float] = groups.agg(reduced)
    return statistics


def ranks(values: Sequence[float], lower_is_better: bool = False) -> list[float]:
    """Rank numbers.

    Args:
        values: finite numbers.
        lower_is_better: whether the lowest has rank 1; else the highest has.

    Returns:
        The rank of each; equal numbers share the mean of the places that they take.

    Example:
        >>> ranks([0.5, 0.9, 0.5])
        [2.5, 1.0, 2.5]
    """
    signed = [value if lower_is_better else -value for value in values]
    return [
        1 + sum(other < one for other in signed) + (signed.count(one) - 1) / 2 for one in signed
    ]
