"""What a comparison of salience metrics says beside SPEFT's paper (arXiv 2412.13488)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import Better, is_lower_better
from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.catalog.variants import is_sparse, masks_of, printed_row
from deltalens.io.records import StudyRecord
from deltalens.io.tables import is_finite, over_seeds
from deltalens.reports.ranking import rank_beside_paper

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ranking_beside_paper"]


def ranking_beside_paper(record: StudyRecord, frame: pd.DataFrame, better: Better) -> str:
    """Compare how a study and the paper rank salience metrics, LoRA and PiSSA.

    Args:
        record: a comparison.
        frame: its cells of one metric.
        better: which way that metric is better.

    Returns:
        The two rankings, whether second-order metrics lead here, and whether gradient is the best
        here; empty of a study with fewer than two salience metrics.
    """
    means = over_seeds(frame.groupby("method", sort=False)["value"])
    means = means[is_finite(means)].sort_values(ascending=is_lower_better(better))
    sparse = [str(method) for method in means.index if is_sparse(str(method))]
    rows = {
        row: float(means[method])
        for method in means.index
        if (row := printed_row(str(method), _recorded(record, str(method))))
    }
    if len(sparse) < 2 or len(rows) < 3:
        return ""
    beside = rank_beside_paper(rows, lower_is_better=is_lower_better(better))
    best = SALIENCE_METRICS[masks_of(sparse[0], _recorded(record, sparse[0])).metric]
    order = {0: "which sees no data", 1: "of first order", 2: "of second order"}[best.order]
    return f"{beside.sentence()}; the best salience here is {best.label}, {order}"


def _recorded(record: StudyRecord, method: str) -> dict[str, Any]:
    return {name: record.setting(name, method) for name in ("metric", "scope", "refresh_every")}
