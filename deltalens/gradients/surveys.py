"""Measurements of one step's gradients, and how they get from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deltalens.gradients.steps import Gradient
from deltalens.numerics.bits import magnitude_of_bits
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection import TensorStats, stats_from_row

__all__ = ["PENDING", "Survey", "TopEntries", "fetch_surveys"]


@dataclass
class TopEntries:
    """The largest entries of one tensor at one mask ratio."""

    mask: PackedMask
    """Mask over this rank's entries."""
    threshold: float
    """The smallest magnitude among the largest entries of the tensor's unit."""


@dataclass
class Survey:
    """What was measured of one tensor's gradient."""

    gradient: Gradient
    stats: TensorStats
    """Statistics of the whole tensor, on every rank; undefined until `fetch_surveys`, like all
    fields below."""
    tops: dict[float, TopEntries] = field(default_factory=dict)
    """Mask ratio -> the largest entries; empty if the unit has a NaN."""
    row: Tensor | None = None
    """What has not been fetched from the device yet: the statistics, the unit's NaN count, and the
    bits of the thresholds."""


PENDING = TensorStats(torch.float32, np.empty(0), 0, 0, 0, 0, 0.0, 0.0, [])
"""Stands for statistics that have not been fetched."""


def fetch_surveys(surveys: Sequence[Survey], rows: Sequence[Tensor]) -> list[list[int]]:
    """Copy to the host what is still on a device, in one transfer per device.

    Args:
        surveys: their statistics and thresholds are filled in.
        rows: further 1-D integer tensors to fetch along.

    Returns:
        The rows as lists.
    """
    pending = [survey for survey in surveys if survey.row is not None]
    tensors = [*(survey.row for survey in pending if survey.row is not None), *rows]
    fetched = [torch.empty(0)] * len(tensors)
    for device in {tensor.device for tensor in tensors}:
        indices = [index for index, tensor in enumerate(tensors) if tensor.device == device]
        transferred = torch.cat([tensors[index] for index in indices]).cpu()
        parts = transferred.split([tensors[index].numel() for index in indices])
        for index, part in zip(indices, parts, strict=True):
            fetched[index] = part
    for survey, row in zip(pending, fetched, strict=False):
        _fill_in(survey, row)
    return [row.tolist() for row in fetched[len(pending) :]]


def _fill_in(survey: Survey, row: Tensor) -> None:
    """Read a survey's fetched row."""
    dtype, count = survey.gradient.local.dtype, len(survey.tops)
    numbers, rest = row[: row.numel() - count - 1], row[row.numel() - count - 1 :]
    survey.stats, survey.row = stats_from_row(numbers, dtype), None
    nans, *bits = rest.tolist()
    for top, threshold in zip(survey.tops.values(), bits, strict=True):
        top.threshold = magnitude_of_bits(threshold, dtype)
    if nans:
        survey.tops = {}
