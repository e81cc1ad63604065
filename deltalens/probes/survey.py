"""One step's gradients measured: histograms, exact thresholds, top masks, each tensor's or unit's.

On the CPU by `magnitudes`; on an accelerator, and where a gradient is sharded (DTensor), by
`on_device`, whose numbers `fetch` brings to the host all at once. Of a sharded gradient every
number is that of the whole tensor; masks stay local, each rank holds those of its own entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from deltalens.gradients import Gradient
from deltalens.io.pairing import block_of
from deltalens.numerics import magnitudes, on_device
from deltalens.numerics.bits import magnitude_of_bits
from deltalens.numerics.magnitudes import Numbers
from deltalens.numerics.overlap import PackedMask
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import workers

__all__ = ["QUANTILES", "Survey", "Top", "fetch", "reducer", "survey"]

QUANTILES = {"q50": 0.5, "q90": 0.9, "q99": 0.99, "q999": 0.999}
"""Column -> fraction of the finite entries."""


@dataclass
class Top:
    """The top entries of one tensor at one mask ratio."""

    mask: PackedMask
    """Of this rank's entries."""
    threshold: float
    """Magnitude that the unit's top entries reach."""


@dataclass
class Survey:
    """What was measured of one tensor."""

    gradient: Gradient
    numbers: Numbers
    """Of the whole tensor, on every rank. Undefined until `fetch`, as all that follows."""
    tops: dict[float, Top] = field(default_factory=dict)
    """Mask ratio -> its top entries; none where the unit has a NaN."""
    row: Tensor | None = None
    """What is still on the device: the numbers, the unit's NaNs, and the bits of the thresholds."""


def survey(
    gradients: Sequence[Gradient],
    scope: str,
    mask_ratios: Sequence[float],
    scratch: Scratch,
) -> list[Survey]:
    """Measure the gradients of one step; call `fetch` before anything but the masks is read.

    Args:
        gradients: those that are watched.
        scope: what is ranked together: `tensor`, `layer` or `global`.
        mask_ratios: fractions masked out, from 0 to below 1.
        scratch: reused memory.
    """
    here: list[list[Gradient]] = []
    there: dict[Any, list[list[Gradient]]] = {}
    for unit in _units(gradients, scope):
        first = unit[0]
        if is_here(first):
            here.append(unit)
        else:
            key = (first.groups, first.local.dtype, first.local.device)
            there.setdefault(key, []).append(unit)
    found = []
    # The largest first: what is left for the last thread is small.
    here.sort(key=lambda unit: -sum(one.local.numel() for one in unit))
    with workers() as each:
        for measured in each(lambda unit: _measure_here(unit, mask_ratios, scratch), here):
            found += measured
    for units in there.values():
        # In one order on all ranks: their counts are added up together.
        found += _measure_there(sorted(units, key=lambda unit: unit[0].name), mask_ratios)
    return found


def is_here(gradient: Gradient) -> bool:
    """Whether it is whole, and on the CPU."""
    return not gradient.groups and gradient.local.device.type == "cpu"


def _units(gradients: Sequence[Gradient], scope: str) -> list[list[Gradient]]:
    """What is ranked together; entries of different dtypes, devices or sharding never are."""
    units: dict[Any, list[Gradient]] = {}
    for gradient in gradients:
        name = {"tensor": gradient.name, "layer": block_of(gradient.name)}.get(scope, "")
        local = gradient.local
        units.setdefault((name, local.dtype, local.device, gradient.groups), []).append(gradient)
    return list(units.values())


def _ranks(unit: Sequence[Gradient], mask_ratios: Sequence[float]) -> list[int]:
    """Of the thresholds, 0-based and ascending: the k-th largest with k = n - round(ratio * n)."""
    total = sum(one.entries for one in unit)
    return [min(round(Fraction(str(ratio)) * total), total - 1) for ratio in mask_ratios]


def _measure_here(
    unit: Sequence[Gradient], mask_ratios: Sequence[float], scratch: Scratch
) -> list[Survey]:
    """What is ranked together, on the CPU."""
    scans = [magnitudes.scan(one.local, one.scale, scratch) for one in unit]
    fractions = list(QUANTILES.values())
    surveys = [
        Survey(one, magnitudes.numbers_of(found, fractions))
        for one, found in zip(unit, scans, strict=True)
    ]
    ranks = _ranks(unit, mask_ratios)
    if not ranks or min(ranks) < 0 or any(found.nans for found in scans):
        return surveys
    bounds = magnitudes.boundaries(scans, ranks)
    marked = [
        magnitudes.mark(one.local, one.scale, found, bounds, scratch)
        for one, found in zip(unit, scans, strict=True)
    ]
    bits = magnitudes.settle(marked, bounds)
    sizes = [magnitude_of_bits(one, unit[0].local.dtype) for one in bits]
    for one, masks in zip(surveys, marked, strict=True):
        one.tops = {
            ratio: Top(mask, size)
            for ratio, mask, size in zip(mask_ratios, masks.masks, sizes, strict=True)
        }
    return surveys


def _measure_there(
    units: Sequence[Sequence[Gradient]], mask_ratios: Sequence[float]
) -> list[Survey]:
    """Units of one dtype, device and sharding, without waiting for the device."""
    reduce = reducer(units[0][0])
    parts = [[on_device.Part(one.local, one.scale) for one in unit] for unit in units]
    found = on_device.scan([part for unit in parts for part in unit], reduce)
    ends = accumulate(len(unit) for unit in units)
    spans = [(end - len(unit), end) for end, unit in zip(ends, units, strict=True)]
    prefixes = torch.stack([found.prefixes[a:b].sum(0) for a, b in spans])
    ranks = [_ranks(unit, mask_ratios) for unit in units]
    if mask_ratios:
        bits = on_device.thresholds(parts, prefixes, ranks, reduce)
    else:
        bits = prefixes.new_zeros((len(units), 0))
    surveys = []
    for place, (unit, (first, last)) in enumerate(zip(units, spans, strict=True)):
        nans = found.nans[first:last].sum()
        for tensor, gradient, part in zip(range(first, last), unit, parts[place], strict=True):
            masks = on_device.masks_of(part, bits[place], nans == 0)
            row = on_device.row_of(found, tensor, list(QUANTILES.values()))
            one = Survey(gradient, _NOT_YET, row=torch.cat([row, nans[None], bits[place]]))
            one.tops = {
                ratio: Top(mask, float("nan"))
                for ratio, mask in zip(mask_ratios, masks, strict=True)
            }
            surveys.append(one)
    return surveys


_NOT_YET = Numbers(torch.float32, torch.empty(0).numpy(), 0, 0, 0, 0, 0.0, 0.0, [])


def fetch(surveys: Sequence[Survey], rows: Sequence[Tensor]) -> list[list[int]]:
    """Bring to the host what is still on a device: the surveys' numbers, and rows of integers
    beside them; one transfer for each device.

    Returns:
        The rows.
    """
    waiting = [one for one in surveys if one.row is not None]
    tensors = [*(one.row for one in waiting if one.row is not None), *rows]
    fetched = [torch.empty(0)] * len(tensors)
    for device in {tensor.device for tensor in tensors}:
        places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        whole = torch.cat([tensors[place] for place in places]).cpu()
        parts = whole.split([tensors[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            fetched[place] = part
    for one, row in zip(waiting, fetched, strict=False):
        _take(one, row)
    return [row.tolist() for row in fetched[len(waiting) :]]


def _take(one: Survey, row: Tensor) -> None:
    """Read a survey's row."""
    dtype, count = one.gradient.local.dtype, len(one.tops)
    numbers, rest = row[: row.numel() - count - 1], row[row.numel() - count - 1 :]
    one.numbers, one.row = on_device.numbers_in(numbers, dtype), None
    nans, *bits = rest.tolist()
    for top, threshold in zip(one.tops.values(), bits, strict=True):
        top.threshold = magnitude_of_bits(threshold, dtype)
    if nans:
        one.tops = {}


def reducer(gradient: Gradient) -> on_device.Reduce | None:
    """Adds a tensor up over the ranks that hold parts of a gradient."""
    if not gradient.groups:
        return None

    def reduce(counts: Tensor) -> None:
        for group in gradient.groups:
            dist.all_reduce(counts, group=group)

    return reduce
