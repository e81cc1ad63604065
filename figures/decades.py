"""Metrics whose values span decades."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import better_of, is_lower_better
from deltalens.io.tables import is_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["scale_decades"]

_RATIO = 100
"""From here on the small values would lie on the axis."""


def scale_decades(axis: Any, metric: str, values: pd.Series) -> None:
    """Make the y-axis logarithmic if lower is better and the values lie far apart.

    Args:
        axis: matplotlib's axes.
        metric: as the records name it.
        values: all that is drawn, in the records' unit, which must be that of the axis.
    """
    positive = values[(values > 0) & is_finite(values)]
    if not is_lower_better(better_of(metric)) or len(positive) < 2:
        return
    if float(positive.max() / positive.min()) <= _RATIO:
        return
    if float(values.min()) > 0:
        axis.set_yscale("log")
    else:
        axis.set_yscale("symlog", linthresh=float(positive.min()))
        axis.set_ylim(bottom=0)
