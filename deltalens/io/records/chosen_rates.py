"""Studies with a grid of learning rates: at which rate each method is shown. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import better_of, is_lower_better
from deltalens.catalog.studies import LEARNING_RATE_COLUMN
from deltalens.errors import RecordError
from deltalens.io.records.table import VALUES
from deltalens.io.tables import over_seeds

if TYPE_CHECKING:
    import pandas as pd

    from deltalens.io.records.journal import Measurement

__all__ = ["as_choosing", "chosen", "deciding_metric", "has_grid", "without_choosing"]

_ON_CHOOSING = "@choose_on"
"""Behind the name of a metric that was measured on the rows that choose."""
_DECIDING = ("dpo_loss", "cross_entropy", "squared_error", "loss")
"""Losses: of preferences, of labels, of tokens. By them a checkpoint is chosen, too."""


def as_choosing(metrics: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """Name what was measured on the rows that choose: `loss@choose_on`.

    Args:
        metrics: by their names.

    Returns:
        The same, by the names in records.
    """
    return {f"{name}{_ON_CHOOSING}": measured for name, measured in metrics.items()}


def deciding_metric(names: Iterable[str]) -> str:
    """Look up which of the metrics of some rows decides where something is chosen on these.

    Args:
        names: of the metrics.

    Returns:
        The loss that the rows were trained by.
    """
    held = {*names}
    return next((name for name in _DECIDING if name in held), _DECIDING[-1])


def has_grid(cells: pd.DataFrame) -> bool:
    """Tell whether a study has a grid of learning rates.

    Args:
        cells: of a study's record.

    Returns:
        Whether its cells have learning rates.
    """
    return LEARNING_RATE_COLUMN in cells.columns


def without_choosing(cells: pd.DataFrame) -> pd.DataFrame:
    """Leave out what was measured on the rows that choose.

    Args:
        cells: of a study's record.

    Returns:
        The other rows.
    """
    return cells[~cells["metric"].str.endswith(_ON_CHOOSING)]


def chosen(cells: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """Reduce a study with a grid of learning rates to the trainings at the chosen rates.

    The rate is chosen for each method, and in a sweep at each of its points, by the mean over seeds
    of what the trained models reach on the rows that choose (`choose_on`); the evaluation rows have
    no part in it. Of equally good rates the lower one is taken, and while a study is not finished
    only rates with the most finished seeds compete.

    Args:
        cells: of a study's record, as `load_study` reads it.
        by: the metric of the rows that choose which decides; None: their loss.

    Returns:
        The cells at the chosen rates, and those that have none, without what was measured on the
        rows that choose; all cells of a study without a grid.

    Raises:
        RecordError: the metric was not measured on those rows.
    """
    if not has_grid(cells):
        return cells
    settings = [name for name in cells.columns if name not in VALUES]
    point = [name for name in settings if name not in (LEARNING_RATE_COLUMN, "seed")]
    name = _deciding(cells, by)
    rates = cells[cells["metric"] == f"{name}{_ON_CHOOSING}"]
    best = {
        key: _best(part, is_lower_better(better_of(name)))
        for key, part in rates.groupby(point, sort=False)
    }
    shown = without_choosing(cells)
    keys = shown[point].itertuples(index=False, name=None)
    pairs = zip(keys, shown[LEARNING_RATE_COLUMN], strict=True)
    keep = [rate == best.get(key, rate) for key, rate in pairs]
    return shown[keep]


def _deciding(cells: pd.DataFrame, by: str | None) -> str:
    found = dict.fromkeys(
        str(name).removesuffix(_ON_CHOOSING)
        for name in cells["metric"]
        if str(name).endswith(_ON_CHOOSING)
    )
    if by is not None and by not in found and found:
        raise RecordError(f"{by!r} was not measured on choose_on; it has {', '.join(found)}")
    return by or deciding_metric(found)


def _best(part: pd.DataFrame, lower: bool) -> Any:
    """The rate with the best mean over seeds."""
    by_rate = part.groupby(LEARNING_RATE_COLUMN)["value"]
    means, counts = over_seeds(by_rate), by_rate.size()
    sign = 1 if lower else -1

    def rank(rate: Any) -> tuple[float, float]:
        value = sign * float(means[rate])
        return (value if math.isfinite(value) else math.inf), rate

    return min(means.index[counts == counts.max()], key=rank)
