"""The gradients of one step, ranked: counts, thresholds, top masks, or what is below made zero.

Whether a gradient is whole and on the CPU, on an accelerator, or sharded (DTensor) is decided here,
and nowhere above. Of a sharded gradient every number is that of the whole tensor; masks stay local,
each rank holds those of its own entries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from deltalens.gradients.steps import Gradient, GradientStep
from deltalens.names import Scope, unit_of
from deltalens.numerics.bits import magnitude_of_bits
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.rates import exact_rate
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import (
    Backend,
    Counts,
    Entries,
    OnCpu,
    OnDevice,
    Reduce,
    TensorStats,
    rank_units,
    stats_from_row,
    stats_row,
)
from deltalens.numerics.workers import Mapper, workers

__all__ = ["RankedStep", "Survey", "TopEntries", "fetch_surveys", "rank_gradients", "reducer_for"]


@dataclass
class TopEntries:
    """The top entries of one tensor at one mask ratio."""

    mask: PackedMask
    """Of this rank's entries."""
    threshold: float
    """Magnitude that the unit's top entries reach."""


@dataclass
class Survey:
    """What was measured of one tensor."""

    gradient: Gradient
    numbers: TensorStats
    """Of the whole tensor, on every rank. Undefined until `fetch_surveys`, as all that follows."""
    tops: dict[float, TopEntries] = field(default_factory=dict)
    """Mask ratio -> its top entries; none where the unit has a NaN."""
    row: Tensor | None = None
    """What is still on the device: the numbers, the unit's NaNs, and the bits of the thresholds."""


@contextmanager
def rank_gradients(
    step: GradientStep,
    gradients: Sequence[Gradient],
    scope: Scope,
    scratch: Scratch,
    fractions: Sequence[float] = (),
) -> Iterator[RankedStep]:
    """Rank some gradients of a step: they are counted, once for all that read them.

    Args:
        step: the step.
        gradients: those of it that are meant, fp16, bf16, fp32 or fp64.
        scope: what is ranked together. Entries of different dtypes, devices or sharding never are.
        scratch: reused memory.
        fractions: of the quantiles, if they are to be surveyed.
    """
    with workers() as mapper:
        yield RankedStep(step, _units_of(gradients, scope), mapper, scratch, fractions)


class RankedStep:
    """See `rank_gradients`."""

    def __init__(
        self,
        step: GradientStep,
        units: Sequence[_Unit],
        mapper: Mapper,
        scratch: Scratch,
        fractions: Sequence[float],
    ) -> None:
        self._fractions, here = fractions, OnCpu(mapper, scratch, fractions)
        self._batches = [
            _Batch(some, here if some[0].here else OnDevice(reducer_for(some[0].first)))
            for some in _batches_of(units)
        ]
        for batch in self._batches:
            batch.count(step.counts)

    def nonfinite(self) -> list[str]:
        """Tensors that hold a NaN or an infinity; waits for an accelerator."""
        found: list[str] = []
        for batch in self._batches:
            counts = [one for unit in batch.units for one in unit.counts]
            broken = [one.nans + one.infinities for one in counts]
            if not batch.here:
                broken = torch.stack(broken).tolist()
            names = [one.name for unit in batch.units for one in unit.gradients]
            found += [name for name, some in zip(names, broken, strict=True) if some]
        return sorted(found)

    def survey(self, ratios: Sequence[float]) -> list[Survey]:
        """Measure the gradients; call `fetch_surveys` before anything but the masks is read.

        Args:
            ratios: mask ratios, fractions masked out, from 0 to below 1.
        """
        return [
            one
            for batch in self._batches
            for one in (_survey_on_cpu if batch.here else _survey_on_device)(
                batch, ratios, self._fractions
            )
        ]

    def shrink(
        self, ratio: Fraction, kept: Mapping[str, PackedMask], leaving: Collection[str]
    ) -> dict[str, int | Tensor]:
        """Make zero, in place in `local`, what is below each unit's threshold at a mask ratio; all
        else is made true in a mask (GMT, Eq. 3: ties stay).

        Args:
            ratio: the fraction masked out, above 0 and below 1.
            kept: tensor -> its mask.
            leaving: tensors whose units are left as they are, and kept as a whole.

        Returns:
            Tensor -> the magnitude bits of its unit's threshold, for those that were thinned. Of
            an accelerator they are tensors, which nobody has waited for.
        """
        thresholds: dict[str, int | Tensor] = {}
        for batch in self._batches:
            whole = []
            for unit in batch.units:
                if any(one.name in leaving for one in unit.gradients):
                    for one in unit.gradients:
                        kept[one.name].fill()
                else:
                    whole.append(unit)
            masks = [[kept[one.name] for one in unit.gradients] for unit in whole]
            for unit, bits, _ in batch.rank(whole, [ratio], masks):
                thresholds |= dict.fromkeys((one.name for one in unit.gradients), bits[0])
        return thresholds


@dataclass
class _Unit:
    """Gradients that are ranked together: of one dtype, device and sharding."""

    gradients: list[Gradient]
    counts: list[Counts] = field(default_factory=list)

    @property
    def first(self) -> Gradient:
        """Any of them, for what they share."""
        return self.gradients[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the gradients."""
        return self.first.local.dtype

    @property
    def here(self) -> bool:
        """Whether they are whole, and on the CPU."""
        return is_whole_on_cpu(self.first)

    @property
    def size(self) -> int:
        """Entries, on all processes."""
        return sum(one.entries for one in self.gradients)

    @property
    def entries(self) -> list[Entries]:
        """What this process has of them."""
        return [Entries(one.name, one.local, one.scale) for one in self.gradients]

    def pairs(self) -> Iterator[tuple[Gradient, Counts]]:
        """Each gradient with its counts."""
        return zip(self.gradients, self.counts, strict=True)

    def rank_at(self, ratio: Fraction) -> int:
        """The rank of the threshold, 0-based and ascending: of the k-th largest magnitude with
        k = n - round(mask ratio * n), at least 1 (GMT, Eq. 3)."""
        return min(round(ratio * self.size), self.size - 1)


def _units_of(gradients: Sequence[Gradient], scope: Scope) -> list[_Unit]:
    units: dict[Any, _Unit] = {}
    for one in gradients:
        key = (unit_of(one.name, scope), one.local.dtype, one.local.device, one.groups)
        units.setdefault(key, _Unit([])).gradients.append(one)
    return list(units.values())


def _batches_of(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """The units on the CPU; and all others, those together that share dtype, device and sharding,
    in an order that is the same on all ranks."""
    batches: dict[Any, list[_Unit]] = {}
    for unit in units:
        one = unit.first
        key = None if unit.here else (one.groups, one.local.dtype, one.local.device)
        batches.setdefault(key, []).append(unit)
    here = batches.pop(None, [])
    there = [sorted(some, key=lambda unit: unit.first.name) for some in batches.values()]
    return [here, *there] if here else there


@dataclass
class _Batch:
    """Units that one backend ranks."""

    units: list[_Unit]
    backend: Backend

    @property
    def here(self) -> bool:
        """Whether they are on the CPU."""
        return self.units[0].here

    def count(self, known: dict[str, Counts]) -> None:
        """Count what has not been counted in this step."""
        new = [unit for unit in self.units if any(one.name not in known for one in unit.gradients)]
        if new:
            found = self.backend.count([unit.entries for unit in new])
            for unit, counts in zip(new, found, strict=True):
                known |= zip((one.name for one in unit.gradients), counts, strict=True)
        for unit in self.units:
            unit.counts = [known[one.name] for one in unit.gradients]

    def rank(
        self,
        units: Sequence[_Unit],
        ratios: Sequence[Fraction],
        kept: Sequence[Sequence[PackedMask]] | None = None,
    ) -> Iterator[tuple[_Unit, Sequence[int | Tensor], Sequence[Sequence[PackedMask]]]]:
        """Units with the bits of their thresholds, and the masks of each tensor (`rank_units`)."""
        if not units or not ratios:
            return ((unit, [], [[] for _ in unit.gradients]) for unit in units)
        ranks = [[unit.rank_at(ratio) for ratio in ratios] for unit in units]
        counts = [unit.counts for unit in units]
        found = rank_units(self.backend, [unit.entries for unit in units], counts, ranks, kept)
        return zip(units, found.bits, found.masks or repeat([]), strict=False)


def _survey_on_cpu(
    batch: _Batch, ratios: Sequence[float], fractions: Sequence[float]
) -> list[Survey]:
    found = {
        one.name: Survey(one, some.numbers(fractions))
        for unit in batch.units
        for one, some in unit.pairs()
    }
    whole = [unit for unit in batch.units if unit.size and not any(c.nans for c in unit.counts)]
    for unit, bits, masks in batch.rank(whole, list(map(exact_rate, ratios))):
        thresholds = [magnitude_of_bits(int(one), unit.dtype) for one in bits]
        for one, some in zip(unit.gradients, masks, strict=True):
            found[one.name].tops = dict(zip(ratios, map(TopEntries, some, thresholds), strict=True))
    return list(found.values())


def _survey_on_device(
    batch: _Batch, ratios: Sequence[float], fractions: Sequence[float]
) -> list[Survey]:
    """Without waiting for the device."""
    surveys = []
    for unit, bits, masks in batch.rank(batch.units, list(map(exact_rate, ratios))):
        nans = sum(one.nans for one in unit.counts)
        for (gradient, counts), some in zip(unit.pairs(), masks, strict=True):
            apart = torch.stack([torch.as_tensor(one) for one in (nans, *bits)])
            row = torch.cat([stats_row(counts, fractions), apart])
            tops = (TopEntries(mask, float("nan")) for mask in some)
            found = dict(zip(ratios, tops, strict=True))
            surveys.append(Survey(gradient, _NOT_YET, found, row))
    return surveys


_NOT_YET = TensorStats(torch.float32, np.empty(0), 0, 0, 0, 0, 0.0, 0.0, [])


def fetch_surveys(surveys: Sequence[Survey], rows: Sequence[Tensor]) -> list[list[int]]:
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
    one.numbers, one.row = stats_from_row(numbers, dtype), None
    nans, *bits = rest.tolist()
    for top, threshold in zip(one.tops.values(), bits, strict=True):
        top.threshold = magnitude_of_bits(threshold, dtype)
    if nans:
        one.tops = {}


def is_whole_on_cpu(gradient: Gradient) -> bool:
    """Whether it is whole, and on the CPU."""
    return not gradient.groups and gradient.local.device.type == "cpu"


def reducer_for(gradient: Gradient) -> Reduce | None:
    """Adds a tensor up over the ranks that hold parts of a gradient; None if it is whole."""
    if not gradient.groups:
        return None

    def reduce(counts: Tensor) -> None:
        for group in gradient.groups:
            dist.all_reduce(counts, group=group)

    return reduce
