"""What a probe has measured, as the tables of a run have it (docs/records.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltalens.gradients.ranked import Survey

__all__ = ["QUANTILES", "columns_of", "histograms_of", "mask_rows", "tensor_row"]

QUANTILES = {"q50": 0.5, "q90": 0.9, "q99": 0.99, "q999": 0.999}
"""Column -> fraction of the finite entries."""


def histograms_of(number: int, surveys: Sequence[Survey]) -> dict[str, Any]:
    """The table `histograms` of one step, column by column."""
    bins = [one.numbers.bins for one in surveys]
    low, high, counts = (np.concatenate(column) for column in zip(*bins, strict=True))
    names = [one.gradient.name for one in surveys]
    codes = np.repeat(np.arange(len(names), dtype=np.int32), [len(low) for low, _, _ in bins])
    return {
        "step": np.full(len(low), number),
        "tensor": (codes, names),
        "low": low,
        "high": high,
        "count": counts,
    }


def tensor_row(
    number: int, one: Survey, changes: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """A row of the table `tensors`."""
    found, entries = one.numbers, one.gradient.entries
    return {
        "step": number,
        "tensor": one.gradient.name,
        "entries": entries,
        "norm": math.sqrt(found.squares),
        "mean": found.total / entries if entries else math.nan,
        **dict(zip(QUANTILES, found.quantiles, strict=True)),
        "zeros": found.zeros,
        "subnormals": found.subnormals,
        "infinities": found.infinities,
        "nans": found.nans,
        **changes.get(one.gradient.name, {}),
    }


def mask_rows(
    number: int,
    surveys: Sequence[Survey],
    ratios: Sequence[float],
    compared: Mapping[tuple[str, float], Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Rows of the table `masks`, one for each tensor and ratio.

    Args:
        number: of the step.
        surveys: its tensors.
        ratios: the mask ratios.
        compared: what a mask has in common with others, by tensor and ratio.
    """
    return [
        {
            "step": number,
            "tensor": one.gradient.name,
            "mask_ratio": ratio,
            "threshold": one.tops[ratio].threshold if ratio in one.tops else math.nan,
            "entries": one.gradient.entries,
            **compared.get((one.gradient.name, ratio), {}),
        }
        for one in surveys
        for ratio in ratios
    ]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows, column by column; what a row does not have is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
