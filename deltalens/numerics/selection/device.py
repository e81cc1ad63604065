"""The backend for tensors on an accelerator or in shards: it never waits for the device.

All operations have shapes that are known beforehand, so they can be queued one after the other, and
results stay on the device until one transfer fetches those of a whole step. Counts of sharded
tensors are summed over ranks on the way. Thresholds follow from counts, digit by digit; one more
visit marks what they separate, or sets it to zero.
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
from deltalens.numerics.selection.searches import DigitWindow, RadixSearch
from deltalens.numerics.sizes import SIZES

__all__ = ["OnDevice", "Reduce", "stats_from_row", "stats_row"]

Reduce = Callable[[Tensor], None]
"""Sums a tensor in place over the ranks that hold shards of the same tensors."""

_DIGIT = 8
"""Bits of a threshold below its prefix that each round finds."""


class OnDevice:
    """The backend for one dtype, device and sharding, see `Backend`.

    Args:
        reduce: sums over ranks; None if the tensors are whole.
    """

    def __init__(self, reduce: Reduce | None) -> None:
        self._reduce = reduce or (lambda counts: None)

    def count(self, units: Units) -> list[list[Counts]]:
        """See `Backend.count`.

        Returns:
            Counts, arranged as the tensors are.
        """
        tensors = [one for unit in units for one in unit]
        first = tensors[0].values
        counts = first.new_zeros((len(tensors), PREFIXES + 3), dtype=torch.int64)
        sums = first.new_zeros((len(tensors), 2), dtype=torch.float64)
        for tensor, row, sums_row in zip(tensors, counts, sums, strict=True):
            _count(tensor, row, sums_row)
        self._reduce(counts)
        self._reduce(sums)
        counted = (
            Counts(first.dtype, row[:PREFIXES], 1, *row[PREFIXES:], *sums_row)
            for row, sums_row in zip(counts, sums, strict=True)
        )
        return [[next(counted) for _ in unit] for unit in units]

    def visit(
        self,
        units: Units,
        counts: Sequence[Sequence[Counts]],
        ranks: Sequence[Sequence[int]],
        kept: Sequence[Sequence[PackedMask]] | None,
    ) -> _Visit:
        """See `Backend.visit`.

        Returns:
            The pass.
        """
        return _Visit(units, counts, ranks, kept, self._reduce)


def _count(tensor: Entries, counts: Tensor, sums: Tensor) -> None:
    """Add a tensor to (prefixes, zeros, NaNs, infinities) and to (sum, sum of squares)."""
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
        combined = [Counts.combined(unit) for unit in counts]
        self._valid = [unit_counts.nans == 0 for unit_counts in combined]
        prefixes = torch.stack([unit_counts.counts for unit_counts in combined])
        rank_rows = rank_table(tuple(map(tuple, ranks)), prefixes.device)
        self._radix = RadixSearch(counts[0][0].dtype, prefixes, rank_rows, _DIGIT)
        self.masks: list[list[list[PackedMask]]] = []

    def searches(self) -> list[RadixSearch]:
        """See `Visit`: a single search, for all ranks of all units at once."""
        return [self._radix]

    def __call__(self, windows: Sequence[DigitWindow]) -> list[Tensor]:
        """See `Visit`: counts by the next digit, summed over ranks in one reduction."""
        (window,) = windows
        digit_counts = window.leading.new_zeros((*window.leading.shape, 1 << window.digit_bits))
        for unit, leading, counts in zip(self._units, window.leading, digit_counts, strict=True):
            for tensor in unit:
                _count_digits(tensor, window, leading, counts)
        self._reduce(digit_counts)
        return [digit_counts]

    def finish(self, boundaries: Sequence[Tensor | None]) -> list[list[int | Tensor]]:
        """See `Visit`."""
        bits = self._radix.leading
        for index, (unit, thresholds) in enumerate(zip(self._units, bits, strict=True)):
            if self._kept is None:
                valid = self._valid[index]
                self.masks.append([_masks_of(tensor, thresholds, valid) for tensor in unit])
                continue
            for tensor, kept in zip(unit, self._kept[index], strict=True):
                _shrink(tensor, thresholds[0], kept)
        return [list(unit) for unit in bits]


def _count_digits(tensor: Entries, window: DigitWindow, leading: Tensor, counts: Tensor) -> None:
    """Count, among the entries with the known leading bits of each rank, those with each next
    digit."""
    bins = 1 << window.digit_bits
    for _, piece in tensor.pieces(SIZES.device_chunk):
        bits = magnitude_bits(piece) >> (window.bits_left - window.digit_bits)
        for known, count in zip(leading, counts, strict=True):
            relative = bits - (known << window.digit_bits)
            matches = (relative >= 0) & (relative < bins)
            count.scatter_add_(0, relative.clamp_(0, bins - 1).long(), matches.long())


def _masks_of(tensor: Entries, thresholds: Tensor, valid: Tensor) -> list[PackedMask]:
    device = tensor.values.device
    masks = [PackedMask(tensor.values.numel(), device) for _ in thresholds]
    for start, piece in tensor.pieces(SIZES.device_chunk):
        bits = magnitude_bits(piece)
        for mask, threshold in zip(masks, thresholds, strict=True):
            mask.write(start, (bits >= threshold) & valid)
    return masks


def _shrink(tensor: Entries, threshold: Tensor, kept: PackedMask) -> None:
    """Set what lies below the threshold to zero, in place, and mark everything else."""
    for start, piece in tensor.pieces(SIZES.device_chunk):
        stays = magnitude_bits(piece) >= threshold
        tensor.values[start : start + piece.numel()].masked_fill_(~stays, 0)
        mask = PackedMask(piece.numel(), piece.device)
        mask.write(0, stays)
        length = -(-piece.numel() // 8)
        kept.bytes[start // 8 : start // 8 + length] |= mask.bytes[:length]


def stats_row(counts: Counts, fractions: Sequence[float]) -> Tensor:
    """Pack the statistics of one tensor into a row, to be fetched later.

    Args:
        counts: counts of a tensor on a device, of B octave bins.
        fractions: F fractions at which quantiles are taken.

    Returns:
        int64, (B + 6 + F,).
    """
    bin_counts, device = counts.counts, counts.counts.device
    octaves = octave_bins(counts.dtype)
    first, last = int(octaves.starts[0]), int(octaves.starts[-1])
    bins = bin_counts[first:last].view(len(octaves.starts) - 1, -1).sum(1)
    finite = bin_counts[:last].sum()
    wanted = fraction_row(tuple(fractions), device)
    quantiles, _, _ = locate(bin_counts, (wanted * (finite - 1)).round().long())
    others = [
        counts.zeros,
        bin_counts[:first].sum() - counts.zeros,
        counts.infinities,
        counts.nans,
    ]
    sums = torch.stack([counts.magnitude_sum, counts.square_sum])
    return torch.cat([bins, torch.stack(others), sums.view(torch.int64), quantiles])


def stats_from_row(row: Tensor, dtype: torch.dtype) -> TensorStats:
    """Unpack a row that has been fetched.

    Args:
        row: what `stats_row` returned, on the host.
        dtype: dtype of the numbers counted.

    Returns:
        The statistics.
    """
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
