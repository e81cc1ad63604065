"""Small tables: of text, as a summary hands them to whoever prints it; and means over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Table", "is_finite", "over_seeds"]


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def is_finite(values: pd.Series[float]) -> pd.Series[bool]:
    """Which values are finite numbers; also of none at all."""
    # NaN is not between them either.
    return values.astype(float).between(-math.inf, math.inf, inclusive="neither")


def over_seeds(groups: Any, how: Literal["mean", "std", "min", "max"] = "mean") -> pd.Series[float]:
    """One number for each group of a `groupby` of values. A value that is no number makes the
    group's no number: pandas would leave it out, and pass the mean of the others off as the mean of
    all. Values that are all the same deviate by 0, not by what their mean was rounded."""
    import numpy as np

    def reduced(values: Any) -> Any:
        if how == "std" and len(values) > 1 and (values == values.iloc[0]).all():
            return 0.0
        return getattr(values, how)(skipna=False)

    with np.errstate(invalid="ignore"):  # A deviation from infinity is no number.
        found: pd.Series[float] = groups.agg(reduced)
    return found
