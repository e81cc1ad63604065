"""Metrics on which models do so badly that nothing could be seen to fall."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from deltalens.catalog.metrics import HIGHER, axis_label, known_metric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FLOOR", "above_floor", "ever_above_floor", "floor_note"]

FLOOR = 0.05
"""Of a share: where the fine-tune has less, its lines lie on the floor and say nothing."""


def above_floor(metrics: Sequence[str], at_fine_tune: pd.DataFrame) -> list[str]:
    """Choose the metrics that are worth a panel.

    Args:
        metrics: as the records name them.
        at_fine_tune: cells of the fine-tune, with the columns metric and value.

    Returns:
        Those that are no share, or of which the fine-tune has at least `FLOOR`; all of them, if
        none would be left.
    """
    values = at_fine_tune.groupby("metric")["value"].mean()

    def low(metric: str) -> bool:
        known = known_metric(metric)
        is_share = known is not None and known.per_cent and known.better == HIGHER
        return is_share and metric in values.index and bool(values[metric] < FLOOR)

    return [metric for metric in metrics if not low(metric)] or [*metrics]


def ever_above_floor(metrics: Sequence[str], cells: pd.DataFrame) -> list[str]:
    """Choose the metrics that are worth a panel where no model is the reference.

    Args:
        metrics: as the records name them.
        cells: of all that is compared, with the columns metric and value.

    Returns:
        Those that are no share, or of which some cell has at least `FLOOR`; all of them, if none
        would be left.
    """
    return above_floor(metrics, cells.groupby("metric")["value"].max().reset_index())


def floor_note(missing: Iterable[tuple[str, str]], where: str = "at the fine-tune") -> str:
    """Say in a caption which metrics have no panel.

    Args:
        missing: data set, which may be empty, and metric of each that `above_floor` left out.
        where: what they are under the floor at.

    Returns:
        A sentence; empty if all are shown.
    """
    named = {
        " of ".join(filter(None, (axis_label(metric).partition(" (")[0], data)))
        for data, metric in missing
    }
    if not named:
        return ""
    return f"Under {100 * FLOOR:g} % {where}, and not drawn: {', '.join(sorted(named))}."
