"""One step's gradients measured: histograms, exact thresholds, top masks, each tensor's or unit's.

On the CPU by `magnitudes`; on an accelerator, and where a gradient is sharded (DTensor), by
`on_device`, whose numbers `fetch` brings to the host all at once. Of a sharded gradient every
number is that of the whole tensor; masks stay local, each rank holds those of its own entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from deltalens.gradients import Gradient, GradientStep
from deltalens.names import Scope
from deltalens.numerics.bits import magnitude_of_bits
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.rates import exact_rate
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import cpu as magnitudes
from deltalens.numerics.selection import device as on_device
from deltalens.numerics.selection.cpu import Numbers
from deltalens.numerics.workers import over, workers
from deltalens.ranking import Unit, by_place, rank_at, reducer, units_of

__all__ = ["QUANTILES", "Survey", "Top", "fetch", "survey"]

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
    step: GradientStep,
    gradients: Sequence[Gradient],
    scope: Scope,
    mask_ratios: Sequence[float],
    scratch: Scratch,
) -> list[Survey]:
    """Measure the gradients of one step; call `fetch` before anything but the masks is read.

    Args:
        step: the step.
        gradients: those of it that are watched.
        scope: what is ranked together: `tensor`, `layer` or `global`.
        mask_ratios: fractions masked out, from 0 to below 1.
        scratch: reused memory.
    """
    here, there = by_place(units_of(gradients, scope))
    found = _measure_here(step, here, mask_ratios, scratch)
    for units in there:
        found += _measure_there(units, mask_ratios)
    return found


def _ranks(unit: Sequence[Gradient], mask_ratios: Sequence[float]) -> list[int]:
    return [rank_at(unit, exact_rate(ratio)) for ratio in mask_ratios]


def _measure_here(
    step: GradientStep, units: Sequence[Unit], mask_ratios: Sequence[float], scratch: Scratch
) -> list[Survey]:
    """Units on the CPU: each visit tensor by tensor on all cores, whatever is ranked together."""
    fractions = list(QUANTILES.values())
    tensors = [one for unit in units for one in unit]
    names = [one.name for one in tensors]

    def size(one: Gradient) -> int:
        return one.local.numel()

    def scan(one: Gradient) -> tuple[magnitudes.Scan, Survey]:
        found = step.scan(one, scratch)
        return found, Survey(one, magnitudes.numbers_of(found, fractions))

    def mark(one: Gradient) -> magnitudes.Marked:
        found, _ = scanned[one.name]
        return magnitudes.mark(one.local, one.scale, found, bounds[one.name], scratch)

    with workers() as each:
        scanned = dict(zip(names, over(each, scan, tensors, size), strict=True))
        bounds = {}
        for unit in units:
            scans = [scanned[one.name][0] for one in unit]
            ranks = _ranks(unit, mask_ratios)
            if ranks and min(ranks) >= 0 and not any(found.nans for found in scans):
                bound = magnitudes.boundaries(scans, ranks)
                bounds.update({one.name: bound for one in unit})
        ranked = [one for one in tensors if one.name in bounds]
        names_ranked = [one.name for one in ranked]
        marked = dict(zip(names_ranked, over(each, mark, ranked, size), strict=True))
        for unit in units:
            if unit[0].name in bounds:
                _settle(unit, bounds[unit[0].name], marked, scanned, mask_ratios)
    return [scanned[name][1] for name in names]


def _settle(
    unit: Unit,
    bounds: Sequence[magnitudes.Boundary],
    marked: Mapping[str, magnitudes.Marked],
    scanned: Mapping[str, tuple[magnitudes.Scan, Survey]],
    mask_ratios: Sequence[float],
) -> None:
    bits = magnitudes.settle([marked[one.name] for one in unit], bounds)
    sizes = [magnitude_of_bits(one, unit[0].local.dtype) for one in bits]
    for one in unit:
        scanned[one.name][1].tops = {
            ratio: Top(mask, size)
            for ratio, mask, size in zip(mask_ratios, marked[one.name].masks, sizes, strict=True)
        }


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
