"""One step's gradients measured: histograms, exact thresholds, top masks, each tensor's or unit's.

Where a gradient is sharded (DTensor), counts are added up over ranks, so that every number is that
of the whole tensor; masks stay local, each rank holds those of its own entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from deltalens.gradients import Gradient
from deltalens.io.pairing import block_of
from deltalens.numerics.bits import PREFIXES, magnitude_of_bits
from deltalens.numerics.magnitudes import Scan, Unsettled, mark, rank_bins, scan, settle
from deltalens.numerics.overlap import PackedMask
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import workers

__all__ = ["Survey", "Top", "overlap_counts", "survey"]


@dataclass
class Top:
    """The top entries of one tensor at one mask ratio."""

    threshold: float
    """Magnitude that the unit's top entries reach; NaN where one of its entries is."""
    mask: PackedMask | None
    """Of this rank's entries; None where there is no threshold."""


@dataclass
class Survey:
    """What was measured of one tensor."""

    gradient: Gradient
    scan: Scan
    """Of the whole tensor, on every rank."""
    tops: dict[float, Top] = field(default_factory=dict)
    """Mask ratio -> its top entries."""


def survey(
    gradients: Sequence[Gradient],
    scope: str,
    mask_ratios: Sequence[float],
    scratch: Scratch,
) -> list[Survey]:
    """Measure the gradients of one step.

    Args:
        gradients: those that are watched.
        scope: what is ranked together: `tensor`, `layer` or `global`.
        mask_ratios: fractions masked out, from 0 to below 1.
        scratch: reused memory.
    """
    units = _units(gradients, scope)
    if any(gradient.groups for gradient in gradients):
        return [one for group in _by_group(units) for one in _measure(group, mask_ratios, scratch)]
    device = gradients[0].local.device if gradients else "cpu"
    with workers(device) as each:
        found = each(lambda unit: _measure([unit], mask_ratios, scratch), units)
        return [one for unit in found for one in unit]


def _units(gradients: Sequence[Gradient], scope: str) -> list[list[Gradient]]:
    """What is ranked together; entries of different dtypes or sharding never are."""
    units: dict[Any, list[Gradient]] = {}
    for gradient in gradients:
        name = {"tensor": gradient.name, "layer": block_of(gradient.name)}.get(scope, "")
        units.setdefault((name, gradient.local.dtype, gradient.groups), []).append(gradient)
    # The largest first: what is left for the last thread is small.
    return sorted(units.values(), key=lambda unit: -sum(one.local.numel() for one in unit))


def _by_group(units: Sequence[list[Gradient]]) -> list[list[list[Gradient]]]:
    """Units that share process groups and dtype, whose counts are added up together."""
    together: dict[Any, list[list[Gradient]]] = {}
    for unit in sorted(units, key=lambda unit: unit[0].name):
        together.setdefault((unit[0].groups, unit[0].local.dtype), []).append(unit)
    return list(together.values())


def _measure(
    units: Sequence[Sequence[Gradient]], mask_ratios: Sequence[float], scratch: Scratch
) -> list[Survey]:
    """Units of one dtype and one sharding."""
    reduce = _reducer(units[0][0])
    alone = len(units) == len(units[0]) == 1
    surveys = [[Survey(g, scan(g.local, g.scale, scratch, alone)) for g in unit] for unit in units]
    if reduce is not None:
        _add_up([one.scan for unit in surveys for one in unit], reduce)
    clean = [unit for unit in surveys if not any(one.scan.nans for one in unit)]
    for unit in surveys:
        for one in unit:
            one.tops = {ratio: Top(float("nan"), None) for ratio in mask_ratios}
    if not clean or not mask_ratios:
        return [one for unit in surveys for one in unit]

    groups: list[list[Unsettled]] = []
    for unit in clean:
        bins = rank_bins([one.scan for one in unit], _ranks(unit, mask_ratios))
        marks = [[Unsettled(_empty(one.gradient.local), *place) for place in bins] for one in unit]
        for one, some in zip(unit, marks, strict=True):
            mark(one.gradient.local, one.gradient.scale, one.scan.kept, some, scratch)
        groups += [list(group) for group in zip(*marks, strict=True)]
    dtype = units[0][0].local.dtype
    thresholds = iter(zip(settle(groups, dtype, reduce), groups, strict=True))
    for unit in clean:
        for ratio in mask_ratios:
            bits, group = next(thresholds)
            for one, settled in zip(unit, group, strict=True):
                one.tops[ratio] = Top(magnitude_of_bits(bits, dtype), settled.mask)
    for unit in surveys:
        for one in unit:
            one.scan.kept = None
    return [one for unit in surveys for one in unit]


def _empty(local: Tensor) -> PackedMask:
    return PackedMask(local.numel(), local.device)


def _ranks(unit: Sequence[Survey], mask_ratios: Sequence[float]) -> list[int]:
    """Of the thresholds, 0-based and ascending: the k-th largest with k = n - round(ratio * n)."""
    total = sum(one.gradient.entries for one in unit)
    return [min(round(ratio * total), total - 1) for ratio in mask_ratios]


def _reducer(gradient: Gradient) -> Callable[[Tensor], None] | None:
    """Adds a tensor up over the ranks that hold parts of a gradient."""
    if not gradient.groups:
        return None
    device = gradient.local.device

    def reduce(counts: Tensor) -> None:
        there = counts.to(device)
        for group in gradient.groups:
            dist.all_reduce(there, group=group)
        counts.copy_(there)

    return reduce


def _add_up(scans: Sequence[Scan], reduce: Callable[[Tensor], None]) -> None:
    """Make every scan that of the whole tensor: two reductions for all of them."""
    counts = torch.from_numpy(np.stack([one.counts for one in scans]))
    few = torch.tensor([[one.zeros, one.nans, one.infinities] for one in scans])
    whole = torch.cat([counts, few], dim=1)
    sums = torch.tensor([[one.total, one.squares] for one in scans], dtype=torch.float64)
    reduce(whole)
    reduce(sums)
    for one, row, (total, squares) in zip(scans, whole, sums.tolist(), strict=True):
        one.counts = row[:PREFIXES].numpy()
        one.zeros, one.nans, one.infinities = row[PREFIXES:].tolist()
        one.total, one.squares = total, squares


def overlap_counts(
    asked: Sequence[tuple[Gradient, PackedMask, Sequence[PackedMask | None]]],
) -> list[list[int]]:
    """For each mask and some others: how many entries are true in it, in each of the others, and in
    it and each of the others; 0 where there is no other.

    Over all ranks, with one reduction for all masks of one sharding.
    """
    rows = [
        [
            mask.count,
            *(other.count if other else 0 for other in others),
            *(mask.count_both(other) if other else 0 for other in others),
        ]
        for _, mask, others in asked
    ]
    for groups in {gradient.groups for gradient, _, _ in asked if gradient.groups}:
        places = [place for place, (g, _, _) in enumerate(asked) if g.groups == groups]
        counts = torch.tensor([rows[place] for place in places])
        reduce = _reducer(asked[places[0]][0])
        assert reduce is not None
        reduce(counts)
        for place, row in zip(places, counts.tolist(), strict=True):
            rows[place] = row
    return rows
