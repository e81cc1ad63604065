"""Studies as figures take them: what no axis can show becomes infinite or missing, a gap, and what
a task has in per cent a fraction, as all else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import scale_of
from deltalens.io.records import StudyRecord, chosen, load_study
from deltalens.io.tables import is_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_finite"]

_LARGEST = 1e100
"""Beyond it matplotlib's arithmetic overflows: the perplexity of a broken model can be so large."""


def load_finite(folder: str | Path) -> StudyRecord:
    """Read a study for a figure.

    Args:
        folder: of the study.

    Returns:
        The study; values beyond 1e100 are infinite, and such standard errors NaN. Metrics that
        are shown in per cent are fractions. Of a grid of learning rates it has those that were
        chosen (`chosen`).

    Raises:
        RecordError: no study is there, or a damaged one.
    """
    record = load_study(folder)
    value, stderr = (record.cells[name].astype(float) for name in ("value", "stderr"))
    value = value.mask(value > _LARGEST, inf).mask(value < -_LARGEST, -inf)
    finite = record.cells.assign(value=value, stderr=stderr.mask(stderr.abs() > _LARGEST, nan))
    return replace(record, cells=chosen(_as_fractions(finite, record.spec)))


def _as_fractions(cells: pd.DataFrame, spec: Mapping[str, Any]) -> pd.DataFrame:
    """Some tasks of the lm-evaluation-harness measure in per cent already (SQuAD's F1): a share
    above 1 says so, for all cells of its metric and data."""
    measured = spec.get("tasks") or {}
    tasks = {*measured.get("tasks", ()), *measured.get("groups", ())}
    of_tasks = cells[[name for name in ("metric", "data") if name in cells]].map(
        lambda name: str(name).partition("/")[0] in tasks
    )
    shares = (cells["metric"].map(scale_of) > 1) & of_tasks.any(axis=1)
    parts = [cells[name] for name in ("metric", "data") if name in cells]
    largest = cells["value"].where(is_finite(cells["value"])).groupby(parts).transform("max")
    scale = (shares & (largest > 1)).map({True: 100.0, False: 1.0})
    return cells.assign(value=cells["value"] / scale, stderr=cells["stderr"] / scale)
