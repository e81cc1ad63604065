"""Studies as figures take them: what no axis can show becomes infinite or missing, a gap."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from pathlib import Path

from deltalens.io.records import StudyRecord, chosen, load_study

__all__ = ["load_finite"]

_LARGEST = 1e100
"""Beyond it matplotlib's arithmetic overflows: the perplexity of a broken model can be so large."""


def load_finite(folder: str | Path) -> StudyRecord:
    """Read a study for a figure.

    Args:
        folder: of the study.

    Returns:
        The study; values beyond 1e100 are infinite, and such standard errors NaN. Of a grid of
        learning rates it has those that were chosen (`chosen`).

    Raises:
        RecordError: no study is there, or a damaged one.
    """
    record = load_study(folder)
    value, stderr = (record.cells[name].astype(float) for name in ("value", "stderr"))
    value = value.mask(value > _LARGEST, inf).mask(value < -_LARGEST, -inf)
    finite = record.cells.assign(value=value, stderr=stderr.mask(stderr.abs() > _LARGEST, nan))
    return replace(record, cells=chosen(finite))
