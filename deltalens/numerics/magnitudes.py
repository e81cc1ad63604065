"""What a probe wants of one tensor: its histogram in one visit, its top masks in a second.

The first visit counts magnitudes by their leading 15 bits. From the counts follows, for every mask
ratio, the bin in which its threshold lies. The second visit marks what lies above that bin, and
gathers what lies inside: those few settle the exact threshold (`settle`), alone or across ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import (
    CHUNK,
    PREFIXES,
    digits,
    infinity_bits,
    integer_of,
    magnitude_bits,
    magnitude_of_bits,
)
from deltalens.numerics.compiled import scanner
from deltalens.numerics.overlap import PackedMask
from deltalens.numerics.scratch import Scratch

__all__ = [
    "Scan",
    "Unsettled",
    "mark",
    "octave_bins",
    "quantiles",
    "rank_bins",
    "scan",
    "settle",
]

_KEPT = 1 << 24
"""Entries up to which the prefixes of a tensor are kept for the second visit, two bytes each."""
_BLOCKS = 256
_MAGNITUDE = np.int16((1 << 15) - 1)


@dataclass
class Scan:
    """What one visit finds. All counts and sums add over tensors and ranks."""

    dtype: torch.dtype
    counts: np.ndarray
    """How many magnitudes have each prefix: int64, (32768,)."""
    zeros: int = 0
    nans: int = 0
    infinities: int = 0
    total: float = 0.0
    """Sum of the magnitudes; infinities and NaNs count."""
    squares: float = 0.0
    """Sum of their squares."""
    kept: Tensor | None = None
    """The prefixes themselves, int16, (n,): reused memory, for the visit that follows."""

    @functools.cached_property
    def blocks(self) -> np.ndarray:
        """The counts by their leading 8 bits; asked once they are complete."""
        summed: np.ndarray = self.counts.reshape(_BLOCKS, -1).sum(1)
        return summed

    @property
    def subnormals(self) -> int:
        """Entries below the smallest normal number, zeros left out."""
        return int(self.counts[: _octaves(self.dtype)[1]].sum()) - self.zeros


def _shift(dtype: torch.dtype) -> int:
    return 16 * (digits(dtype) - 1)


def _pieces(values: Tensor, scale: Tensor | None, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
    """(start, entries) chunk by chunk, divided by the scale."""
    for start in range(0, values.numel(), CHUNK):
        piece = values[start : start + CHUNK]
        if scale is not None:
            out = scratch.get("unscaled", piece.dtype, piece.numel(), piece.device)
            piece = torch.div(piece, scale.to(piece.device, piece.dtype), out=out)
        yield start, piece


def _prefixes_into(piece: Tensor, out: Tensor) -> Tensor:
    """The leading 15 bits of each magnitude, into an int16 tensor; on a CPU in numpy, which casts
    on the way."""
    signed, shift = piece.view(integer_of(piece.dtype)), _shift(piece.dtype)
    if piece.device.type != "cpu":
        return out.copy_(signed >> shift).bitwise_and_(int(_MAGNITUDE))
    target = out.numpy()
    if shift:
        np.right_shift(signed.numpy(), shift, out=target, casting="unsafe")
        np.bitwise_and(target, _MAGNITUDE, out=target)
    else:
        np.bitwise_and(signed.numpy(), _MAGNITUDE, out=target)
    return out


def scan(values: Tensor, scale: Tensor | None, scratch: Scratch, keep: bool = False) -> Scan:
    """The first visit.

    Args:
        values: 1-D, contiguous; fp16, bf16, fp32 or fp64. May be empty.
        scale: what they have to be divided by, 0-D.
        scratch: reused memory.
        keep: keep the prefixes of a tensor that is not too large, until the next scan.
    """
    found = Scan(values.dtype, np.zeros(PREFIXES, dtype=np.int64))
    if keep and values.numel() <= _KEPT:
        found.kept = scratch.get("kept", torch.int16, values.numel(), values.device)
    here = values.device.type == "cpu"
    counts = scratch.get("counts", torch.int32, 2 * PREFIXES).view(2, PREFIXES)
    counts.numpy().fill(0)
    for start, piece in _pieces(values, scale, scratch):
        if found.kept is not None:
            prefixes = found.kept[start : start + piece.numel()]
        else:
            prefixes = scratch.get("prefixes", torch.int16, piece.numel(), piece.device)
        total, squares = (_scan_here if here else _scan_there)(piece, prefixes, counts)
        found.total += total
        found.squares += squares
    found.counts = np.add(*counts.numpy(), dtype=np.int64)
    _count_apart(found, values)
    return found


def _scan_here(piece: Tensor, prefixes: Tensor, counts: Tensor) -> tuple[float, float]:
    """On the CPU, in one compiled loop; sums of 16-bit numbers follow from their counts."""
    bits = piece.view(integer_of(piece.dtype)).numpy()
    narrow = piece.dtype.itemsize == 2
    sums = scanner()(
        bits,
        bits if narrow else piece.numpy(),
        prefixes.numpy(),
        counts.numpy(),
        _shift(piece.dtype),
    )
    return (0.0, 0.0) if narrow else sums


def _scan_there(piece: Tensor, prefixes: Tensor, counts: Tensor) -> tuple[float, float]:
    """On any other device, in torch."""
    _prefixes_into(piece, prefixes)
    counts[0] += torch.bincount(prefixes, minlength=PREFIXES).cpu()
    if piece.dtype.itemsize == 2:
        return 0.0, 0.0
    return float(piece.abs().sum(dtype=torch.float64)), float(piece.double().square().sum())


def _count_apart(found: Scan, values: Tensor) -> None:
    """Zeros, infinities and NaNs; and the sums of a dtype whose prefixes are single numbers."""
    shift = _shift(found.dtype)
    infinity = infinity_bits(found.dtype) >> shift
    if not shift:
        found.zeros = int(found.counts[0])
        found.infinities = int(found.counts[infinity])
        found.nans = int(found.counts[infinity + 1 :].sum())
        numbers = _numbers(found.dtype)
        occupied = found.counts.nonzero()[0]
        counts, sizes = found.counts[occupied], numbers[occupied]
        found.total, found.squares = float(counts @ sizes), float(counts @ (sizes * sizes))
        return
    if found.counts[0]:
        found.zeros = values.numel() - int(values.count_nonzero())
    if found.counts[infinity:].any():
        found.nans = int(values.isnan().sum())
        found.infinities = int(values.isinf().sum())


@dataclass
class Unsettled:
    """One mask that is marked above its boundary bin, and what lies inside the bin."""

    mask: PackedMask
    prefix: int
    """The bin."""
    rank: int
    """Of the threshold among all entries (of all tensors and ranks) in the bin, ascending."""
    places: list[np.ndarray] = field(default_factory=list)
    """Flat indices of the entries inside."""
    bits: list[np.ndarray] = field(default_factory=list)
    """Their magnitude bits."""


def mark(
    values: Tensor,
    scale: Tensor | None,
    kept: Tensor | None,
    masks: Sequence[Unsettled],
    scratch: Scratch,
) -> None:
    """The second visit: fill each mask with what lies above its bin, gather what lies inside.

    Where a bin is a single magnitude (fp16, bf16) the masks are final and nothing is gathered.
    """
    for start, piece in _pieces(values, scale, scratch):
        if kept is not None:
            prefixes = kept[start : start + piece.numel()]
        else:
            prefixes = scratch.get("prefixes", torch.int16, piece.numel(), piece.device)
            _prefixes_into(piece, prefixes)
        if piece.device.type == "cpu":
            _mark_here(piece, prefixes, start, masks, scratch)
        else:
            _mark_there(piece, prefixes, start, masks)


def _mark_here(
    piece: Tensor, prefixes: Tensor, start: int, masks: Sequence[Unsettled], scratch: Scratch
) -> None:
    """On the CPU, in numpy."""
    room = scratch.get("marked", torch.bool, piece.numel()).numpy()
    leading, signed = prefixes.numpy(), piece.view(integer_of(piece.dtype)).numpy()
    exact, magnitude = piece.dtype.itemsize == 2, np.iinfo(signed.dtype).max
    for one in masks:
        bound = np.int16(one.prefix)
        if exact:
            one.mask.write_here(start, np.greater_equal(leading, bound, out=room))
            continue
        one.mask.write_here(start, np.greater(leading, bound, out=room))
        places = np.equal(leading, bound, out=room).nonzero()[0]
        if places.size:
            one.bits.append(signed[places] & magnitude)
            one.places.append(places + start)


def _mark_there(piece: Tensor, prefixes: Tensor, start: int, masks: Sequence[Unsettled]) -> None:
    """On any other device, in torch."""
    for one in masks:
        if piece.dtype.itemsize == 2:
            one.mask.write(start, prefixes >= one.prefix)
            continue
        one.mask.write(start, prefixes > one.prefix)
        places = (prefixes == one.prefix).nonzero().squeeze(1)
        one.bits.append(magnitude_bits(piece[places]).cpu().numpy())
        one.places.append(places.cpu().numpy() + start)


def rank_bins(scans: Sequence[Scan], ranks: Sequence[int]) -> list[tuple[int, int]]:
    """For each rank (0-based, ascending) among all entries of these scans: the prefix of its entry,
    and its rank among the entries with that prefix."""
    # In two strides: a running sum over all bins costs ten times as much.
    running = np.sum([one.blocks for one in scans], axis=0).cumsum()
    found = []
    for rank in ranks:
        block = int(np.searchsorted(running, rank, side="right"))
        rank -= int(running[block - 1]) if block else 0
        inside = np.sum([one.counts.reshape(_BLOCKS, -1)[block] for one in scans], axis=0).cumsum()
        place = int(np.searchsorted(inside, rank, side="right"))
        rank -= int(inside[place - 1]) if place else 0
        found.append((block * (PREFIXES // _BLOCKS) + place, rank))
    return found


def quantiles(scanned: Scan, fractions: Sequence[float]) -> list[float]:
    """Magnitudes at these fractions of the finite entries, by nearest rank: exact for bf16 and
    fp16; else the lower edge of the right bin, at most 0.8 % (fp32) below. NaN without any."""
    finite = int(scanned.blocks.sum()) - scanned.infinities - scanned.nans
    if finite <= 0:
        return [float("nan")] * len(fractions)
    ranks = [round(fraction * (finite - 1)) for fraction in fractions]
    prefixes = np.array([prefix for prefix, _ in rank_bins([scanned], ranks)])
    return [float(magnitude) for magnitude in _magnitudes(prefixes, scanned.dtype)]


def _magnitudes(prefixes: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The smallest magnitudes with these prefixes, fp64."""
    found: np.ndarray = _numbers(dtype)[prefixes]
    return found


@functools.cache
def _numbers(dtype: torch.dtype) -> np.ndarray:
    """The smallest number with each prefix, fp64."""
    bits = torch.arange(PREFIXES) << _shift(dtype)
    found: np.ndarray = bits.to(integer_of(dtype)).view(dtype).double().numpy()
    return found


Reduce = Callable[[Tensor], None]
"""Adds a tensor up over ranks, in place."""


def settle(
    groups: Sequence[Sequence[Unsettled]], dtype: torch.dtype, reduce: Reduce | None = None
) -> list[int]:
    """The exact threshold of each group of masks, which are completed to it.

    An entry stays where its magnitude is at least the threshold: ties stay (GMT, Eq. 3).

    Args:
        groups: in each, the same mask of every tensor that is ranked together: all with one bin
            and one rank.
        dtype: of the entries.
        reduce: adds counts up over ranks, if other ranks hold other parts; called a few times for
            all groups together.

    Returns:
        The thresholds' magnitude bits.
    """
    if not _shift(dtype):
        return [group[0].prefix for group in groups]
    none = np.empty(0, dtype=np.dtype(f"i{dtype.itemsize}"))
    inside = [np.concatenate([none, *(b for one in group for b in one.bits)]) for group in groups]
    if reduce is None:
        thresholds = [
            int(np.partition(some, group[0].rank)[group[0].rank])
            for some, group in zip(inside, groups, strict=True)
        ]
    else:
        thresholds = _by_digits(inside, [group[0] for group in groups], _shift(dtype), reduce)
    for group, threshold in zip(groups, thresholds, strict=True):
        for one in group:
            for places, bits in zip(one.places, one.bits, strict=True):
                one.mask.set(places[bits >= threshold])
            one.places, one.bits = [], []
    return thresholds


def _by_digits(
    inside: Sequence[np.ndarray], first: Sequence[Unsettled], lower: int, reduce: Reduce
) -> list[int]:
    """For each group the value at its rank among all ranks' entries in its bin: 8 bits a round."""
    leading = [one.prefix for one in first]
    ranks = [one.rank for one in first]
    while lower:
        lower -= 8
        counts = np.stack(
            [_digits(some, lead, lower) for some, lead in zip(inside, leading, strict=True)]
        )
        reduce(torch.from_numpy(counts))
        running = counts.cumsum(1)
        for place, rank in enumerate(ranks):
            digit = int(np.searchsorted(running[place], rank, side="right"))
            ranks[place] -= int(running[place, digit] - counts[place, digit])
            leading[place] = leading[place] << 8 | digit
    return leading


def _digits(bits: np.ndarray, leading: int, lower: int) -> np.ndarray:
    """How many of the entries with these leading bits have each of the next 8 bits."""
    relative = (bits >> lower) - (leading << 8)
    return np.bincount(relative[(relative >= 0) & (relative < 256)], minlength=256)


def octave_bins(scanned: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The occupied bins of a histogram of four bins an octave, zeros, subnormals, infinities and
    NaNs left out.

    Returns:
        Lower edges and upper edges (fp64) and counts (int64), ascending.
    """
    edges, first, width = _octaves(scanned.dtype)
    counts = scanned.counts[first : first + width * (len(edges) - 1)].reshape(-1, width).sum(1)
    occupied = counts.nonzero()[0]
    return edges[occupied], edges[occupied + 1], counts[occupied]


@functools.cache
def _octaves(dtype: torch.dtype) -> tuple[np.ndarray, int, int]:
    """Edges of the bins, the prefix of the first, and how many prefixes make one."""
    info, shift = torch.finfo(dtype), _shift(dtype)
    first, one, two = (
        int(magnitude_bits(torch.tensor([number], dtype=dtype))) >> shift
        for number in (info.tiny, 1.0, 2.0)
    )
    width = (two - one) // 4
    edges = [
        magnitude_of_bits(prefix << shift, dtype)
        for prefix in range(first, infinity_bits(dtype) >> shift, width)
    ]
    edges.append(2.0 * 2.0 ** float(np.frexp(info.max)[1] - 1))
    return np.array(edges), first, width
