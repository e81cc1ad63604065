"""`magnitudes`, for gradients on an accelerator or in shards: nothing here waits for the device.

All operations have shapes known beforehand, so that they can be queued one after the other, and
results stay where they are until one transfer fetches those of a whole step. Counts are added up
over ranks on the way, where tensors are sharded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltalens.numerics.bits import PREFIXES, digits, magnitude_bits
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.cpu import Numbers, octaves_of, smallest_with

__all__ = [
    "Part",
    "Reduce",
    "Scanned",
    "masks_of",
    "numbers_in",
    "row_of",
    "scan",
    "shrink",
    "thresholds",
]

Reduce = Callable[[Tensor], None]
"""Adds a tensor up over the ranks that hold parts of the same tensors, in place."""

_CHUNK = 1 << 24
_DIGIT = 8
"""Bits of a threshold that are found at a time below its prefix."""


@dataclass(frozen=True)
class Part:
    """What this process has of a tensor."""

    values: Tensor
    """1-D, contiguous; fp16, bf16, fp32 or fp64."""
    scale: Tensor | None
    """What they still have to be divided by, 0-D."""

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """(start, entries) piece by piece."""
        for start in range(0, self.values.numel(), _CHUNK):
            piece = self.values[start : start + _CHUNK]
            if self.scale is not None:
                piece = piece / self.scale.to(piece.device, piece.dtype)
            yield start, piece


@dataclass
class Scanned:
    """Counts and sums of T tensors of one dtype, on their device."""

    dtype: torch.dtype
    counts: Tensor
    """How many magnitudes have each prefix, and the numbers of zeros, NaNs and infinities: int64,
    (T, 32768 + 3)."""
    sums: Tensor
    """Of magnitudes and of their squares: fp64, (T, 2)."""

    @property
    def prefixes(self) -> Tensor:
        """int64, (T, 32768)."""
        return self.counts[:, :PREFIXES]

    @property
    def zeros(self) -> Tensor:
        """int64, (T,)."""
        return self.counts[:, PREFIXES]

    @property
    def nans(self) -> Tensor:
        """int64, (T,)."""
        return self.counts[:, PREFIXES + 1]

    @property
    def infinities(self) -> Tensor:
        """int64, (T,)."""
        return self.counts[:, PREFIXES + 2]


def scan(parts: Sequence[Part], reduce: Reduce | None) -> Scanned:
    """Count the magnitudes of each tensor by their leading 15 bits."""
    first = parts[0].values
    counts = first.new_zeros((len(parts), PREFIXES + 3), dtype=torch.int64)
    sums = first.new_zeros((len(parts), 2), dtype=torch.float64)
    shift = 16 * (digits(first.dtype) - 1)
    for part, count, total in zip(parts, counts, sums, strict=True):
        for _, piece in part.pieces():
            prefixes = (magnitude_bits(piece) >> shift).long()
            count.scatter_add_(0, prefixes, prefixes.new_ones(()).expand_as(prefixes))
            count[PREFIXES] += piece.numel() - piece.count_nonzero()
            count[PREFIXES + 1] += piece.isnan().sum()
            count[PREFIXES + 2] += piece.isinf().sum()
            total[0] += torch.linalg.vector_norm(piece, 1, dtype=torch.float64)
            total[1] += torch.linalg.vector_norm(piece, 2, dtype=torch.float64).square()
    if reduce is not None:
        reduce(counts)
        reduce(sums)
    return Scanned(first.dtype, counts, sums)


def thresholds(
    units: Sequence[Sequence[Part]],
    prefixes: Tensor,
    ranks: Sequence[Sequence[int]],
    reduce: Reduce | None,
) -> Tensor:
    """The magnitude bits at ranks (0-based, ascending) of units: int64, (U, R).

    Args:
        units: parts of tensors that are ranked together.
        prefixes: counts of each unit by prefix, over all ranks: int64, (U, 32768).
        ranks: of each unit, as many for all.
        reduce: adds counts up over ranks; called once a round, for all units together.
    """
    asked = _constant(tuple(map(tuple, ranks)), prefixes.device)
    leading, inside = _at(prefixes.cumsum(-1), asked)
    lower = 16 * (digits(units[0][0].values.dtype) - 1)
    while lower:
        lower -= _DIGIT
        counts = prefixes.new_zeros((*leading.shape, 1 << _DIGIT))
        for place, unit in enumerate(units):
            for part in unit:
                _count_digits(part, lower, leading[place], counts[place])
        if reduce is not None:
            reduce(counts)
        digit, inside = _at(counts.cumsum(-1), inside.unsqueeze(-1))
        leading, inside = (leading << _DIGIT) | digit.squeeze(-1), inside.squeeze(-1)
    return leading


def _at(running: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of each rank in a running sum, and its rank inside."""
    found = torch.searchsorted(running, ranks, right=True).clamp_(max=running.shape[-1] - 1)
    below = running.gather(-1, (found - 1).clamp(min=0)).where(found > 0, found.new_zeros(()))
    return found, ranks - below


def _count_digits(part: Part, lower: int, leading: Tensor, counts: Tensor) -> None:
    """Of the entries with the leading bits of each mask, how many have each next digit."""
    for _, piece in part.pieces():
        bits = magnitude_bits(piece) >> lower
        for one, count in zip(leading, counts, strict=True):
            relative = bits - (one << _DIGIT)
            hit = (relative >= 0) & (relative < 1 << _DIGIT)
            count.scatter_add_(0, relative.clamp_(0, (1 << _DIGIT) - 1).long(), hit.long())


def masks_of(part: Part, least: Tensor, valid: Tensor) -> list[PackedMask]:
    """The entries whose magnitude bits are at least each of `least`, int64, (R,); all false where
    not `valid`, bool, ()."""
    device = part.values.device
    masks = [PackedMask(part.values.numel(), device) for _ in least]
    for start, piece in part.pieces():
        bits = magnitude_bits(piece)
        for mask, one in zip(masks, least, strict=True):
            mask.write(start, (bits >= one) & valid)
    return masks


def shrink(part: Part, least: Tensor, kept: PackedMask) -> None:
    """Make zero, in place, what is below the magnitude bits `least`, int64, (); all else is made
    true in a mask."""
    for start, piece in part.pieces():
        stays = magnitude_bits(piece) >= least
        part.values[start : start + piece.numel()].masked_fill_(~stays, 0)
        mask = PackedMask(piece.numel(), piece.device)
        mask.write(0, stays)
        length = -(-piece.numel() // 8)
        kept.bytes[start // 8 : start // 8 + length] |= mask.bytes[:length]


def row_of(scanned: Scanned, place: int, fractions: Sequence[float]) -> Tensor:
    """All numbers of one tensor as one row to be fetched: int64, (B + 6 + F,)."""
    counts, device = scanned.prefixes[place], scanned.counts.device
    octaves = octaves_of(scanned.dtype)
    first, last = int(octaves.starts[0]), int(octaves.starts[-1])
    bins = counts[first:last].view(len(octaves.starts) - 1, -1).sum(1)
    finite = counts[:last].sum()
    asked = _constant_fractions(tuple(fractions), device)
    ranks = (asked * (finite - 1)).round().long()
    quantiles, _ = _at(counts.cumsum(0), ranks)
    few = torch.stack(
        [
            scanned.zeros[place],
            counts[:first].sum() - scanned.zeros[place],
            scanned.infinities[place],
            scanned.nans[place],
        ]
    )
    return torch.cat([bins, few, scanned.sums[place].view(torch.int64), quantiles])


def numbers_in(row: Tensor, dtype: torch.dtype) -> Numbers:
    """A row, once it has been fetched."""
    bins = len(octaves_of(dtype).starts) - 1
    octaves = row[:bins].numpy()
    zeros, subnormals, infinities, nans = row[bins : bins + 4].tolist()
    total, squares = row[bins + 4 : bins + 6].view(torch.float64).tolist()
    quantiles = smallest_with(dtype)[row[bins + 6 :].numpy()].tolist()
    if not octaves.sum() + zeros + subnormals:
        quantiles = [float("nan")] * len(quantiles)
    return Numbers(dtype, octaves, zeros, subnormals, infinities, nans, total, squares, quantiles)


@functools.lru_cache(maxsize=4096)
def _constant(ranks: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Sent to the device once, not at every step."""
    return torch.tensor(ranks, dtype=torch.int64, device=device)


@functools.lru_cache
def _constant_fractions(fractions: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(fractions, dtype=torch.float64, device=device)
