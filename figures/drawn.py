"""A study as pictures take it: what no axis can show is as what is not finite, a gap."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from pathlib import Path

from deltalens.io.records import StudyRecord, load_study

__all__ = ["load_drawn"]

_LARGEST = 1e100
"""Beyond it (the perplexity of a model that fell apart) the arithmetic of axes overflows."""


def load_drawn(folder: str | Path) -> StudyRecord:
    """Read a study for a picture.

    Raises:
        RecordError: no study there, or a damaged one.
    """
    record = load_study(folder)
    value, stderr = (record.cells[name].astype(float) for name in ("value", "stderr"))
    value = value.mask(value > _LARGEST, inf).mask(value < -_LARGEST, -inf)
    cells = record.cells.assign(value=value, stderr=stderr.mask(stderr.abs() > _LARGEST, nan))
    return replace(record, cells=cells)
