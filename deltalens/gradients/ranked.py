"""Rank the gradients of one step: counts, thresholds, masks of the top entries, or zeroing the
rest.

Whether a gradient is whole and on the CPU, on an accelerator, or sharded (DTensor) is decided here,
and nowhere above. Every number describes the whole tensor; masks stay local, each rank holding
those of its own entries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from deltalens.gradients.steps import Gradient, GradientStep
from deltalens.gradients.surveys import PENDING, Survey, TopEntries
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
    rank_units,
    stats_row,
)
from deltalens.numerics.workers import Mapper, workers

__all__ = ["RankedStep", "is_whole_on_cpu", "rank_gradients", "reducer_for"]


@contextmanager
def rank_gradients(
    step: GradientStep,
    gradients: Sequence[Gradient],
    scope: Scope,
    scratch: Scratch,
    fractions: Sequence[float] = (),
) -> Iterator[RankedStep]:
    """Count the gradients of a step, once for all that read them.

    Args:
        step: the optimizer step.
        gradients: those of its gradients to rank: fp16, bf16, fp32 or fp64.
        scope: what is ranked together. Entries of different dtypes, devices or shardings never are.
        scratch: memory that is reused.
        fractions: the quantiles to compute, if the gradients are to be surveyed.

    Returns:
        A context manager that provides the ranked gradients.
    """
    with workers() as mapper:
        yield RankedStep(step, _units_of(gradients, scope), mapper, scratch, fractions)


class RankedStep:
    """The gradients of a step, counted; made by `rank_gradients`.

    Args:
        step: the optimizer step.
        units: its gradients, in units that are ranked together.
        mapper: how tensors on the CPU are visited.
        scratch: memory that is reused.
        fractions: the quantiles to compute, if the gradients are to be surveyed.
    """

    def __init__(
        self,
        step: GradientStep,
        units: Sequence[_Unit],
        mapper: Mapper,
        scratch: Scratch,
        fractions: Sequence[float],
    ) -> None:
        self._fractions, cpu = fractions, OnCpu(mapper, scratch, fractions)
        self._batches = [
            _Batch(
                batch_units,
                cpu if batch_units[0].whole_on_cpu else OnDevice(reducer_for(batch_units[0].first)),
            )
            for batch_units in _batches_of(units)
        ]
        for batch in self._batches:
            batch.count(step.counts)

    def nonfinite(self) -> list[str]:
        """List the tensors that hold a NaN or an infinity. Waits for an accelerator.

        Returns:
            Their parameter names, sorted.
        """
        names: list[str] = []
        for batch in self._batches:
            counts = [counted for unit in batch.units for counted in unit.counts]
            nonfinite = [counted.nans + counted.infinities for counted in counts]
            if not batch.whole_on_cpu:
                nonfinite = torch.stack(nonfinite).tolist()
            batch_names = [name for unit in batch.units for name in unit.names]
            names += [name for name, count in zip(batch_names, nonfinite, strict=True) if count]
        return sorted(names)

    def survey(self, ratios: Sequence[float]) -> list[Survey]:
        """Measure the gradients. Only the masks may be read before `fetch_surveys`.

        Args:
            ratios: mask ratios (fractions masked out), in [0, 1).

        Returns:
            One survey per gradient.
        """
        return [
            survey
            for batch in self._batches
            for survey in (_survey_on_cpu if batch.whole_on_cpu else _survey_on_device)(
                batch, ratios, self._fractions
            )
        ]

    def shrink(
        self, ratio: Fraction, kept: Mapping[str, PackedMask], unchanged: Collection[str]
    ) -> dict[str, int | Tensor]:
        """Set what lies below each unit's threshold to zero (GMT, Eq. 3: ties stay).

        Changes `Gradient.local` in place.

        Args:
            ratio: the fraction masked out, in (0, 1).
            kept: parameter name -> mask in which the entries that stay are marked.
            unchanged: parameter names; units that contain one of them are left unchanged and marked
                as a whole.

        Returns:
            Parameter name -> magnitude bits of its unit's threshold, for the units that were
            masked; on an accelerator a tensor, which has not been waited for.
        """
        thresholds: dict[str, int | Tensor] = {}
        for batch in self._batches:
            masked_units = []
            for unit in batch.units:
                if any(name in unchanged for name in unit.names):
                    for name in unit.names:
                        kept[name].fill()
                else:
                    masked_units.append(unit)
            masks = [[kept[name] for name in unit.names] for unit in masked_units]
            for unit, bits, _ in batch.rank(masked_units, [ratio], masks):
                thresholds |= dict.fromkeys(unit.names, bits[0])
        return thresholds


@dataclass
class _Unit:
    """Gradients that are ranked together; they share dtype, device and sharding."""

    gradients: list[Gradient]
    counts: list[Counts] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Parameter names of the gradients."""
        return [gradient.name for gradient in self.gradients]

    @property
    def first(self) -> Gradient:
        """Any of the gradients, for what they share."""
        return self.gradients[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the gradients."""
        return self.first.local.dtype

    @property
    def whole_on_cpu(self) -> bool:
        """Whether the gradients are whole and on the CPU."""
        return is_whole_on_cpu(self.first)

    @property
    def size(self) -> int:
        """Number of entries, over all processes."""
        return sum(gradient.entries for gradient in self.gradients)

    @property
    def entries(self) -> list[Entries]:
        """This process's entries."""
        return [
            Entries(gradient.name, gradient.local, gradient.scale) for gradient in self.gradients
        ]

    def pairs(self) -> Iterator[tuple[Gradient, Counts]]:
        """Pairs of gradient and counts."""
        return zip(self.gradients, self.counts, strict=True)

    def rank_at(self, ratio: Fraction) -> int:
        """Rank of the threshold, 0-based and ascending.

        The threshold is the k-th largest magnitude, with k = n - round(mask ratio * n), at least 1
        (GMT, Eq. 3).
        """
        return min(round(ratio * self.size), self.size - 1)


def _units_of(gradients: Sequence[Gradient], scope: Scope) -> list[_Unit]:
    units: dict[Any, _Unit] = {}
    for gradient in gradients:
        key = (
            unit_of(gradient.name, scope),
            gradient.local.dtype,
            gradient.local.device,
            gradient.groups,
        )
        units.setdefault(key, _Unit([])).gradients.append(gradient)
    return list(units.values())


def _batches_of(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Group units by backend: those on the CPU, then those that share dtype, device and sharding,
    in an order that is the same on all ranks."""
    batches: dict[Any, list[_Unit]] = {}
    for unit in units:
        first = unit.first
        key = None if unit.whole_on_cpu else (first.groups, first.local.dtype, first.local.device)
        batches.setdefault(key, []).append(unit)
    on_cpu = batches.pop(None, [])
    others = [sorted(batch, key=lambda unit: unit.first.name) for batch in batches.values()]
    return [on_cpu, *others] if on_cpu else others


@dataclass
class _Batch:
    """Units that one backend ranks."""

    units: list[_Unit]
    backend: Backend

    @property
    def whole_on_cpu(self) -> bool:
        """Whether the units are whole and on the CPU."""
        return self.units[0].whole_on_cpu

    def count(self, counts_by_name: dict[str, Counts]) -> None:
        """Count what has not been counted yet in this step."""
        uncounted = [
            unit for unit in self.units if any(name not in counts_by_name for name in unit.names)
        ]
        if uncounted:
            new_counts = self.backend.count([unit.entries for unit in uncounted])
            for unit, counts in zip(uncounted, new_counts, strict=True):
                counts_by_name |= zip(unit.names, counts, strict=True)
        for unit in self.units:
            unit.counts = [counts_by_name[name] for name in unit.names]

    def rank(
        self,
        units: Sequence[_Unit],
        ratios: Sequence[Fraction],
        kept: Sequence[Sequence[PackedMask]] | None = None,
    ) -> Iterator[tuple[_Unit, Sequence[int | Tensor], Sequence[Sequence[PackedMask]]]]:
        """Iterate over units with the bits of their thresholds and the masks of each tensor
        (`rank_units`)."""
        if not units or not ratios:
            return ((unit, [], [[] for _ in unit.gradients]) for unit in units)
        ranks = [[unit.rank_at(ratio) for ratio in ratios] for unit in units]
        counts = [unit.counts for unit in units]
        thresholds = rank_units(self.backend, [unit.entries for unit in units], counts, ranks, kept)
        return zip(units, thresholds.bits, thresholds.masks or repeat([]), strict=False)


def _survey_on_cpu(
    batch: _Batch, ratios: Sequence[float], fractions: Sequence[float]
) -> list[Survey]:
    surveys = {
        gradient.name: Survey(gradient, counts.stats(fractions))
        for unit in batch.units
        for gradient, counts in unit.pairs()
    }
    rankable = [
        unit for unit in batch.units if unit.size and not any(counts.nans for counts in unit.counts)
    ]
    for unit, bits, masks in batch.rank(rankable, list(map(exact_rate, ratios))):
        thresholds = [magnitude_of_bits(int(threshold), unit.dtype) for threshold in bits]
        for name, unit_masks in zip(unit.names, masks, strict=True):
            tops = map(TopEntries, unit_masks, thresholds)
            surveys[name].tops = dict(zip(ratios, tops, strict=True))
    return list(surveys.values())


def _survey_on_device(
    batch: _Batch, ratios: Sequence[float], fractions: Sequence[float]
) -> list[Survey]:
    """Survey without waiting for the device."""
    surveys = []
    for unit, bits, masks in batch.rank(batch.units, list(map(exact_rate, ratios))):
        nans = sum(counts.nans for counts in unit.counts)
        for (gradient, counts), unit_masks in zip(unit.pairs(), masks, strict=True):
            unit_numbers = torch.stack([torch.as_tensor(number) for number in (nans, *bits)])
            row = torch.cat([stats_row(counts, fractions), unit_numbers])
            tops = (TopEntries(mask, float("nan")) for mask in unit_masks)
            by_ratio = dict(zip(ratios, tops, strict=True))
            surveys.append(Survey(gradient, PENDING, by_ratio, row))
    return surveys


def is_whole_on_cpu(gradient: Gradient) -> bool:
    """Tell whether a gradient is unsharded and on the CPU.

    Args:
        gradient: the gradient.

    Returns:
        True if it can be ranked by compiled loops.
    """
    return not gradient.groups and gradient.local.device.type == "cpu"


def reducer_for(gradient: Gradient) -> Reduce | None:
    """Make the function that sums a tensor over the ranks that hold shards of a gradient.

    Args:
        gradient: the gradient.

    Returns:
        A function that sums a tensor in place over the ranks; None if the gradient is whole.
    """
    if not gradient.groups:
        return None

    def reduce(counts: Tensor) -> None:
        for group in gradient.groups:
            dist.all_reduce(counts, group=group)

    return reduce
