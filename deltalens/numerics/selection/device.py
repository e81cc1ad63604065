"""Tensors on an accelerator or in shards: nothing here waits for the device.

All operations have shapes known beforehand, so that they can be queued one after the other, and
results stay where they are until one transfer fetches those of a whole step. Counts are added up
over ranks on the way, where tensors are sharded. Thresholds come from counts, digit by digit; what
they part is marked, or made zero, in one more visit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltalens.numerics.bits import PREFIXES, magnitude_bits
from deltalens.numerics.constants import fraction_row, rank_table
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.backend import Units
from deltalens.numerics.selection.counts import (
    Counts,
    TensorStats,
    locate,
    octave_bins,
    prefix_floors,
)
from deltalens.numerics.selection.keys import Entries, prefix_shift
from deltalens.numerics.selection.windows import DigitWindow, RadixSearch
from deltalens.numerics.sizes import SIZES

__all__ = ["OnDevice", "Reduce", "stats_from_row", "stats_row"]

Reduce = Callable[[Tensor], None]
"""Adds a tensor up over the ranks that hold parts of the same tensors, in place."""

_DIGIT = 8
"""Bits of a threshold that are found at a time below its prefix."""


class OnDevice:
    """See `Backend`; all units are of one dtype, device and sharding.

    Args:
        reduce: adds up over ranks; None where the tensors are whole.
    """

    def __init__(self, reduce: Reduce | None) -> None:
        self._reduce = reduce or (lambda counts: None)

    def count(self, units: Units) -> list[list[Counts]]:
        """See `Backend`."""
        tensors = [one for unit in units for one in unit]
        first = tensors[0].values
        counts = first.new_zeros((len(tensors), PREFIXES + 3), dtype=torch.int64)
        sums = first.new_zeros((len(tensors), 2), dtype=torch.float64)
        for tensor, some, total in zip(tensors, counts, sums, strict=True):
            _count(tensor, some, total)
        self._reduce(counts)
        self._reduce(sums)
        found = (
            Counts(first.dtype, some[:PREFIXES], 1, *some[PREFIXES:], *total)
            for some, total in zip(counts, sums, strict=True)
        )
        return [[next(found) for _ in unit] for unit in units]

    def visit(
        self,
        units: Units,
        counts: Sequence[Sequence[Counts]],
        ranks: Sequence[Sequence[int]],
        kept: Sequence[Sequence[PackedMask]] | None,
    ) -> _Visit:
        """See `Backend`."""
        return _Visit(units, counts, ranks, kept, self._reduce)


def _count(tensor: Entries, counts: Tensor, sums: Tensor) -> None:
    """Add a tensor to (prefixes, zeros, NaNs, infinities) and (sizes, squares)."""
    shift = prefix_shift(tensor.values.dtype)
    for _, piece in tensor.pieces(SIZES.device_chunk):
        prefixes = (magnitude_bits(piece) >> shift).long()
        counts.scatter_add_(0, prefixes, prefixes.new_ones(()).expand_as(prefixes))
        counts[PREFIXES] += piece.numel() - piece.count_nonzero()
        counts[PREFIXES + 1] += piece.isnan().sum()
        counts[PREFIXES + 2] += piece.isinf().sum()
        sums[0] += torch.linalg.vector_norm(piece, 1, dtype=torch.float64)
        sums[1] += torch.linalg.vector_norm(piece, 2, dtype=torch.float64).square()


class _Visit:
    """See `Visit`; masks of units that have a NaN are all false."""

    def __init__(
        self,
        units: Units,
        counts: Sequence[Sequence[Counts]],
        ranks: Sequence[Sequence[int]],
        kept: Sequence[Sequence[PackedMask]] | None,
        reduce: Reduce,
    ) -> None:
        self._units, self._kept, self._reduce = units, kept, reduce
        together = [Counts.combined(unit) for unit in counts]
        self._valid = [one.nans == 0 for one in together]
        prefixes = torch.stack([one.counts for one in together])
        spec = rank_table(tuple(map(tuple, ranks)), prefixes.device)
        self._radix = RadixSearch(counts[0][0].dtype, prefixes, spec, _DIGIT)
        self.masks: list[list[list[PackedMask]]] = []

    def spec(self) -> list[RadixSearch]:
        """See `Visit`: all ranks of all units at once."""
        return [self._radix]

    def __call__(self, windows: Sequence[DigitWindow]) -> list[Tensor]:
        """See `Visit`: counts by the next digit, added up over ranks in one go."""
        (window,) = windows
        found = window.leading.new_zeros((*window.leading.shape, 1 << window.digit))
        for unit, leading, counts in zip(self._units, window.leading, found, strict=True):
            for tensor in unit:
                _count_digits(tensor, window, leading, counts)
        self._reduce(found)
        return [found]

    def finish(self, found: Sequence[Tensor | None]) -> list[list[int | Tensor]]:
        """See `Visit`."""
        bits = self._radix.leading
        for place, (unit, least) in enumerate(zip(self._units, bits, strict=True)):
            if self._kept is None:
                valid = self._valid[place]
                self.masks.append([_masks_of(tensor, least, valid) for tensor in unit])
                continue
            for tensor, kept in zip(unit, self._kept[place], strict=True):
                _shrink(tensor, least[0], kept)
        return [list(unit) for unit in bits]


def _count_digits(tensor: Entries, window: DigitWindow, leading: Tensor, counts: Tensor) -> None:
    """Of the entries with the leading bits of each rank, how many have each next digit."""
    bins = 1 << window.digit
    for _, piece in tensor.pieces(SIZES.device_chunk):
        bits = magnitude_bits(piece) >> (window.lower - window.digit)
        for one, count in zip(leading, counts, strict=True):
            relative = bits - (one << window.digit)
            hit = (relative >= 0) & (relative < bins)
            count.scatter_add_(0, relative.clamp_(0, bins - 1).long(), hit.long())


def _masks_of(tensor: Entries, least: Tensor, valid: Tensor) -> list[PackedMask]:
    device = tensor.values.device
    masks = [PackedMask(tensor.values.numel(), device) for _ in least]
    for start, piece in tensor.pieces(SIZES.device_chunk):
        bits = magnitude_bits(piece)
        for mask, one in zip(masks, least, strict=True):
            mask.write(start, (bits >= one) & valid)
    return masks


def _shrink(tensor: Entries, least: Tensor, kept: PackedMask) -> None:
    """What is below the threshold becomes zero, in place; all else is made true in a mask."""
    for start, piece in tensor.pieces(SIZES.device_chunk):
        stays = magnitude_bits(piece) >= least
        tensor.values[start : start + piece.numel()].masked_fill_(~stays, 0)
        mask = PackedMask(piece.numel(), piece.device)
        mask.write(0, stays)
        length = -(-piece.numel() // 8)
        kept.bytes[start // 8 : start // 8 + length] |= mask.bytes[:length]


def stats_row(found: Counts, fractions: Sequence[float]) -> Tensor:
    """All numbers of one tensor as one row to be fetched: int64, (B + 6 + F,)."""
    counts, device = found.counts, found.counts.device
    octaves = octave_bins(found.dtype)
    first, last = int(octaves.starts[0]), int(octaves.starts[-1])
    bins = counts[first:last].view(len(octaves.starts) - 1, -1).sum(1)
    finite = counts[:last].sum()
    spec = fraction_row(tuple(fractions), device)
    quantiles, _, _ = locate(counts, (spec * (finite - 1)).round().long())
    few = [found.zeros, counts[:first].sum() - found.zeros, found.infinities, found.nans]
    sums = torch.stack([found.magnitude_sum, found.square_sum])
    return torch.cat([bins, torch.stack(few), sums.view(torch.int64), quantiles])


def stats_from_row(row: Tensor, dtype: torch.dtype) -> TensorStats:
    """A row, once it has been fetched."""
    bins = len(octave_bins(dtype).starts) - 1
    octaves = row[:bins].numpy()
    zeros, subnormals, infinities, nans = row[bins : bins + 4].tolist()
    total, squares = row[bins + 4 : bins + 6].view(torch.float64).tolist()
    quantiles = prefix_floors(dtype)[row[bins + 6 :].numpy()].tolist()
    if not octaves.sum() + zeros + subnormals:
        quantiles = [float("nan")] * len(quantiles)
    return TensorStats(
        dtype, octaves, zeros, subnormals, infinities, nans, total, squares, quantiles
    )
