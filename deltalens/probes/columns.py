"""A probe's measurements as the tables of a run (docs/records.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltalens.gradients.surveys import Survey

__all__ = ["QUANTILES", "columns_of", "histograms_of", "mask_rows", "tensor_row"]

QUANTILES = {"q50": 0.5, "q90": 0.9, "q99": 0.99, "q999": 0.999}
"""Column -> the fraction of the finite entries at which the magnitude is taken."""


def histograms_of(number: int, surveys: Sequence[Survey]) -> dict[str, Any]:
    """Build the table `histograms` of one step.

    Args:
        number: the step's number.
        surveys: the fetched surveys of the step.

    Returns:
        Column name -> values, one per occupied bin; the tensor names as (codes, categories).
    """
    bins = [survey.stats.bins for survey in surveys]
    low, high, counts = (np.concatenate(column) for column in zip(*bins, strict=True))
    names = [survey.gradient.name for survey in surveys]
    codes = np.repeat(np.arange(len(names), dtype=np.int32), [len(low) for low, _, _ in bins])
    return {
        "step": np.full(len(low), number),
        "tensor": (codes, names),
        "low": low,
        "high": high,
        "count": counts,
    }


def tensor_row(
    number: int, survey: Survey, changes: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Build one row of the table `tensors`.

    Args:
        number: the step's number.
        survey: the fetched survey of one tensor.
        changes: parameter name -> shares of entries that the step changed; may be empty.

    Returns:
        Column name -> value.
    """
    stats, entries = survey.stats, survey.gradient.entries
    return {
        "step": number,
        "tensor": survey.gradient.name,
        "entries": entries,
        "norm": math.sqrt(stats.square_sum),
        "mean": stats.magnitude_sum / entries if entries else math.nan,
        **dict(zip(QUANTILES, stats.quantiles, strict=True)),
        "zeros": stats.zeros,
        "subnormals": stats.subnormals,
        "infinities": stats.infinities,
        "nans": stats.nans,
        **changes.get(survey.gradient.name, {}),
    }


def mask_rows(
    number: int,
    surveys: Sequence[Survey],
    ratios: Sequence[float],
    compared: Mapping[tuple[str, float], Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Build the rows of the table `masks`, one for each tensor and ratio.

    Args:
        number: the step's number.
        surveys: the fetched surveys of the step.
        ratios: the mask ratios.
        compared: (parameter name, ratio) -> overlap of the mask with earlier masks.

    Returns:
        One row per tensor and ratio, as column name -> value.
    """
    return [
        {
            "step": number,
            "tensor": survey.gradient.name,
            "mask_ratio": ratio,
            "threshold": survey.tops[ratio].threshold if ratio in survey.tops else math.nan,
            "entries": survey.gradient.entries,
            **compared.get((survey.gradient.name, ratio), {}),
        }
        for survey in surveys
        for ratio in ratios
    ]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Transpose rows into columns.

    Args:
        rows: rows as column name -> value; they may lack columns.

    Returns:
        Column name -> values; None where a row lacks the column.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
