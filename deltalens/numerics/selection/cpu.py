"""What a probe wants of a tensor on the CPU: a histogram in one visit, top masks in a second.

The first visit counts magnitudes by their leading 15 bits. From the counts follows, for every mask
ratio, the bin in which its threshold lies (`boundaries`). The second visit marks what lies above
that bin, and gathers what lies inside: those few settle the exact threshold (`settle`).
`on_device` does the same where waiting for the device would cost more than the work.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.errors import DeltaLensError, said_by
from deltalens.numerics.bits import (
    CHUNK,
    PREFIXES,
    digits,
    infinity_bits,
    integer_of,
    magnitude_bits,
    magnitude_of_bits,
)
from deltalens.numerics.masks import PackedMask, compare
from deltalens.numerics.scratch import Scratch

__all__ = [
    "Boundary",
    "Marked",
    "Numbers",
    "Octaves",
    "Scan",
    "Shrunk",
    "boundaries",
    "clear_beside",
    "mark",
    "numbers_of",
    "octaves_of",
    "prepare",
    "restore_beside",
    "scan",
    "settle",
    "settle_shrunk",
    "shrink",
    "smallest_with",
]

_MOST = 1 << 32
"""Entries of a tensor must be fewer: they are counted in 32 bits."""


@dataclass
class Scan:
    """What one visit finds: of the counts, only the occupied range."""

    dtype: torch.dtype
    bottom: int
    """How many magnitudes have prefix 0."""
    first: int
    """The least prefix above 0 that there is; 1 where there is none."""
    counts: np.ndarray
    """How many have each prefix from there on, up to the greatest: int64, (P,)."""
    zeros: int = 0
    nans: int = 0
    infinities: int = 0
    total: float = 0.0
    """Sum of the magnitudes; infinities and NaNs count."""
    squares: float = 0.0
    """Sum of their squares."""

    def count_at(self, prefix: int) -> int:
        """How many magnitudes have this prefix."""
        if not prefix:
            return self.bottom
        place = prefix - self.first
        return int(self.counts[place]) if 0 <= place < self.counts.size else 0


def _shift(dtype: torch.dtype) -> int:
    return 16 * (digits(dtype) - 1)


def _pieces(values: Tensor, scale: Tensor | None, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
    """(start, entries) piece by piece; divided by the scale, if there is one, in reused memory."""
    size = max(1, values.numel()) if scale is None else CHUNK
    for start in range(0, values.numel(), size):
        piece = values[start : start + size]
        if scale is not None:
            out = scratch.get("unscaled", piece.dtype, piece.numel(), piece.device)
            piece = torch.div(piece, scale.to(piece.device, piece.dtype), out=out)
        yield start, piece


def scan(values: Tensor, scale: Tensor | None, scratch: Scratch) -> Scan:
    """The first visit.

    Args:
        values: 1-D, contiguous; fp16, bf16, fp32 or fp64. May be empty.
        scale: what they have to be divided by, 0-D.
        scratch: reused memory.
    """
    from deltalens.numerics.selection import loops as compiled

    if values.numel() >= _MOST:
        raise DeltaLensError(f"a tensor of {values.numel():,} entries: 2^32 are too many")
    tables = scratch.zeros("counted", torch.int32, 2 * PREFIXES).view(2, PREFIXES).numpy()
    tables = tables.view(np.uint32)
    total, squares, zeros, least, greatest = 0.0, 0.0, 0, PREFIXES, 0
    for _, piece in _pieces(values, scale, scratch):
        bits = _integers(piece)
        numbers = bits if bits.itemsize == 2 else piece.numpy()
        first, last = _whole_words(bits)
        words = bits[first:last].view(np.uint64)
        parts = [compiled.scan(words, bits[first:last], numbers[first:last], tables)]
        parts += [
            _scan_one(bits[place], numbers[place], tables)
            for place in (*range(first), *range(last, bits.size))
        ]
        total += sum(part[0] for part in parts)
        squares += sum(part[1] for part in parts)
        zeros += sum(part[2] for part in parts)
        least = min(least, *(part[3] for part in parts))
        greatest = max(greatest, *(part[4] for part in parts))
    first_prefix = least + 1 if greatest else 1
    counts = np.empty(greatest + 1 - first_prefix if greatest else 0, dtype=np.int64)
    bottom = compiled.collect(tables, first_prefix, counts)
    found = Scan(values.dtype, bottom, first_prefix, counts, zeros, 0, 0, total, squares)
    _count_apart(found, values)
    return found


def _whole_words(bits: np.ndarray) -> tuple[int, int]:
    """First and last entry of what can be read in aligned words of 64 bits."""
    per_word = 8 // bits.itemsize
    first = min(bits.size, -bits.ctypes.data % 8 // bits.itemsize)
    return first, first + (bits.size - first) // per_word * per_word


def _scan_one(
    bits: np.integer[Any], number: np.floating[Any], tables: np.ndarray
) -> tuple[float, float, int, int, int]:
    """`compiled.scan`, for an entry beside the whole words."""
    prefix = int(bits) >> (8 * bits.itemsize - 16) & (PREFIXES - 1)
    tables[0, prefix] += 1
    size = abs(float(number)) if bits.itemsize > 2 else 0.0
    zero = bits.itemsize > 2 and size == 0
    return size, size * size, zero, prefix - 1 if prefix else PREFIXES, prefix


def _count_apart(found: Scan, values: Tensor) -> None:
    """Infinities and NaNs; and what follows from the counts where prefixes are single numbers."""
    infinity = infinity_bits(found.dtype) >> _shift(found.dtype)
    broken = found.first + found.counts.size > infinity
    if found.dtype.itemsize > 2:
        if broken:
            found.nans = int(values.isnan().sum())
            found.infinities = int(values.isinf().sum())
        return
    found.zeros = found.bottom
    if broken:
        found.infinities = found.count_at(infinity)
        found.nans = int(found.counts[max(0, infinity + 1 - found.first) :].sum())
    occupied = found.counts.nonzero()[0]
    counts, sizes = found.counts[occupied], smallest_with(found.dtype)[occupied + found.first]
    found.total, found.squares = float(counts @ sizes), float(counts @ (sizes * sizes))


class Boundary(NamedTuple):
    """Where the threshold of a mask lies."""

    low: int
    """Its magnitude bits are in [low, high); they are `low` where both are the same."""
    high: int
    rank: int
    """Of the threshold among all entries (of all tensors ranked together) inside, ascending."""


def boundaries(scans: Sequence[Scan], ranks: Sequence[int]) -> list[Boundary]:
    """For each rank (0-based, ascending) among all entries of these scans, of one dtype."""
    zeros, shift = sum(one.zeros for one in scans), _shift(scans[0].dtype)
    found = []
    for prefix, rank in zip(*_prefixes_at(_together(scans), ranks), strict=True):
        exact = not shift or (prefix == 0 and rank < zeros)
        found.append(Boundary(prefix << shift, (prefix + (not exact)) << shift, rank))
    return found


class _Counts(NamedTuple):
    """The counts of a `Scan`, or of several."""

    bottom: int
    first: int
    counts: np.ndarray


def _together(scans: Sequence[Scan]) -> _Counts:
    if len(scans) == 1:
        return _Counts(scans[0].bottom, scans[0].first, scans[0].counts)
    first = min(one.first for one in scans)
    end = max(one.first + one.counts.size for one in scans)
    counts = np.zeros(end - first, dtype=np.int64)
    for one in scans:
        counts[one.first - first :][: one.counts.size] += one.counts
    return _Counts(sum(one.bottom for one in scans), first, counts)


def _prefixes_at(counted: _Counts, ranks: Sequence[int]) -> tuple[list[int], list[int]]:
    from deltalens.numerics.selection import loops as compiled

    asked = np.array(ranks, dtype=np.int64)
    prefixes, inside = np.empty_like(asked), np.empty_like(asked)
    compiled.prefixes_at(*counted, asked, prefixes, inside)
    return prefixes.tolist(), inside.tolist()


@dataclass
class Marked:
    """The masks of one tensor, and what lies in the bins of their thresholds."""

    masks: list[PackedMask]
    places: list[np.ndarray]
    """For each mask, flat indices of the entries inside its bin: int64."""
    inside: list[np.ndarray]
    """Their magnitude bits."""


def mark(
    values: Tensor,
    scale: Tensor | None,
    found: Scan,
    bounds: Sequence[Boundary],
    scratch: Scratch,
) -> Marked:
    """The second visit: fill each mask with what lies above its bin, gather what lies inside.

    Args:
        values, scale, scratch: as in `scan`.
        found: what it found of this tensor.
        bounds: of each mask.
    """
    from deltalens.numerics.selection import loops as compiled

    masks, words = PackedMask.several(len(bounds), values.numel())
    integer = np.dtype(f"i{values.dtype.itemsize}")
    low, high = (np.array([one[end] for one in bounds], dtype=integer) for end in (0, 1))
    shift = _shift(values.dtype)
    # The loop writes one entry further before it knows whether that is inside.
    room = [found.count_at(one.low >> shift) + 1 if one.low < one.high else 1 for one in bounds]
    starts = np.cumsum([0, *room])
    filled = starts[:-1].copy()
    places, inside = np.empty(starts[-1], np.int64), np.empty(starts[-1], integer)
    clear = np.array([np.iinfo(integer).max], dtype=integer)
    for start, piece in _pieces(values, scale, scratch):
        before = filled.copy()
        bits = _integers(piece)
        compiled.mark(bits, clear, low, high, words[:, start // 32 :], filled, places, inside)
        if start:
            for first, last in zip(before, filled, strict=True):
                places[first:last] += start
    spans = list(zip(starts, filled, strict=False))
    return Marked(masks, [places[a:b] for a, b in spans], [inside[a:b] for a, b in spans])


def settle(unit: Sequence[Marked], bounds: Sequence[Boundary]) -> list[int]:
    """The magnitude bits of the exact thresholds; the masks are completed to them.

    An entry stays where its magnitude is at least the threshold: ties stay (GMT, Eq. 3).

    Args:
        unit: the tensors that are ranked together.
        bounds: of each of their masks.
    """
    from deltalens.numerics.selection import loops as compiled

    thresholds = []
    for place, bound in enumerate(bounds):
        if bound.low == bound.high:
            thresholds.append(bound.low)
            continue
        inside = [one.inside[place] for one in unit]
        some = inside[0] if len(inside) == 1 else np.concatenate(inside)
        threshold = int(np.partition(some, bound.rank)[bound.rank])
        for one in unit:
            words = one.masks[place].words
            compiled.set_bits(words, one.places[place], one.inside[place], threshold)
        thresholds.append(threshold)
    return thresholds


def prepare(dtype: torch.dtype) -> None:
    """Compile or load the loops for a dtype now, so that no step has to wait for it.

    Raises:
        DeltaLensError: numba cannot compile them.
    """
    with said_by("numba", f"the loops for {dtype} cannot be compiled"):
        values, scratch = torch.zeros(64, dtype=dtype), Scratch()
        found = scan(values, None, scratch)
        bounds = [Boundary(0, 1 << _shift(dtype), 0)]
        marked = mark(values, None, found, bounds, scratch)
        settle([marked], bounds)
        numbers_of(found, [0.5])
        compare(marked.masks[0], [None] * 3, marked.masks[0])
        shrunk = shrink(values, None, found, bounds[0], marked.masks[0], scratch)
        settle_shrunk([values], [shrunk], bounds[0], marked.masks)


@dataclass
class Shrunk:
    """What lies in the bin of the threshold of a tensor whose lesser entries are zero by now."""

    places: np.ndarray
    """Flat indices: int64."""
    inside: np.ndarray
    """Magnitude bits."""


def shrink(
    values: Tensor,
    scale: Tensor | None,
    found: Scan,
    bound: Boundary,
    kept: PackedMask,
    scratch: Scratch,
) -> Shrunk:
    """Make zero what lies below the bin of the threshold, in place; `settle_shrunk` does the rest.

    Args:
        values, scale, scratch: as in `scan`; the magnitudes ranked are those after the scale.
        found: what it found of this tensor.
        bound: where the threshold lies.
        kept: the entries above the bin are made true in it.
    """
    from deltalens.numerics.selection import loops as compiled

    integer = np.dtype(f"i{values.dtype.itemsize}")
    if not bound.high:
        kept.fill()
        return Shrunk(np.empty(0, np.int64), np.empty(0, integer))
    gathered = bound.low < bound.high
    room = found.count_at(bound.low >> _shift(values.dtype)) + 1 if gathered else 1
    places, inside = np.empty(room, np.int64), np.empty(room, integer)
    filled = np.zeros(1, np.int64)
    bounds = np.array(bound[:2], dtype=integer)
    clear, words = np.array([np.iinfo(integer).max], dtype=integer), kept.words.view(np.uint32)
    for start, piece in _pieces(values, scale, scratch):
        before = int(filled[0])
        bits = _integers(piece)
        compiled.shrink(bits, clear, bounds, words[start // 32 :], filled, places, inside)
        places[before : filled[0]] += start
        if scale is not None:
            target = _integers(values)[start : start + piece.numel()]
            compiled.clear_like(target, bits, clear)
    return Shrunk(places[: filled[0]], inside[: filled[0]])


def settle_shrunk(
    values: Sequence[Tensor], unit: Sequence[Shrunk], bound: Boundary, kept: Sequence[PackedMask]
) -> int:
    """The magnitude bits of the exact threshold; entries below it are made zero, all others are
    made true in the masks (GMT, Eq. 3: ties stay).

    Args:
        values: the tensors that are ranked together, as `shrink` left them.
        unit: what it gathered of each.
        bound: where the threshold lies.
        kept: the masks given to it.
    """
    from deltalens.numerics.selection import loops as compiled

    if bound.low == bound.high:
        return bound.low
    some = unit[0].inside if len(unit) == 1 else np.concatenate([one.inside for one in unit])
    threshold = int(np.partition(some, bound.rank)[bound.rank])
    for tensor, one, mask in zip(values, unit, kept, strict=True):
        compiled.clear_at(_integers(tensor), one.places, one.inside, threshold)
        compiled.set_bits(mask.words, one.places, one.inside, threshold)
    return threshold


def clear_beside(values: Tensor, kept: PackedMask) -> None:
    """Make zero, in place, every entry that is not in a mask; on the CPU."""
    from deltalens.numerics.selection import loops as compiled

    compiled.clear_beside(_integers(values), kept.words.view(np.uint32))


def restore_beside(values: Tensor, before: Tensor, kept: PackedMask) -> None:
    """Put back, in place and bit by bit, every entry that is not in a mask; on the CPU."""
    from deltalens.numerics.selection import loops as compiled

    compiled.restore_beside(_integers(values), _integers(before), kept.words.view(np.uint32))


def _integers(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.view(integer_of(values.dtype)).numpy()
    return found


@dataclass
class Numbers:
    """All that is recorded of one tensor's magnitudes."""

    dtype: torch.dtype
    octaves: np.ndarray
    """Counts of four bins an octave (`octaves_of`): int64, (B,)."""
    zeros: int
    subnormals: int
    infinities: int
    nans: int
    total: float
    """Sum of the magnitudes."""
    squares: float
    """Sum of their squares."""
    quantiles: list[float]
    """At the fractions asked for; exact for bf16 and fp16, else the lower edge of the right bin, at
    most 0.8 % (fp32) below. NaN where nothing is finite."""

    @property
    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower edges, upper edges (fp64) and counts (int64) of the occupied bins, ascending."""
        edges = octaves_of(self.dtype).edges
        occupied = self.octaves.nonzero()[0]
        return edges[occupied], edges[occupied + 1], self.octaves[occupied]


def numbers_of(found: Scan, fractions: Sequence[float]) -> Numbers:
    """What a scan says, with quantiles of the finite entries by nearest rank."""
    from deltalens.numerics.selection import loops as compiled

    starts = octaves_of(found.dtype).starts
    octaves = np.zeros(len(starts) - 1, dtype=np.int64)
    width = int(starts[1] - starts[0])
    below = found.bottom + compiled.octaves(
        found.counts, found.first, int(starts[0]), width, octaves
    )
    finite = below + int(octaves.sum())
    quantiles = [float("nan")] * len(fractions)
    if finite:
        ranks = [round(fraction * (finite - 1)) for fraction in fractions]
        prefixes, _ = _prefixes_at(_together([found]), ranks)
        quantiles = smallest_with(found.dtype)[prefixes].tolist()
    return Numbers(
        found.dtype,
        octaves,
        found.zeros,
        below - found.zeros,
        found.infinities,
        found.nans,
        found.total,
        found.squares,
        quantiles,
    )


@functools.cache
def smallest_with(dtype: torch.dtype) -> np.ndarray:
    """The smallest number with each prefix, fp64, (32768,)."""
    bits = torch.arange(PREFIXES) << _shift(dtype)
    found: np.ndarray = bits.to(integer_of(dtype)).view(dtype).double().numpy()
    return found


class Octaves(NamedTuple):
    """A histogram of four bins an octave over all normal finite numbers of a dtype."""

    edges: np.ndarray
    """fp64, (B + 1,)."""
    starts: np.ndarray
    """The first prefix of each bin, and that of infinity: int64, (B + 1,)."""


@functools.cache
def octaves_of(dtype: torch.dtype) -> Octaves:
    """The bins of a dtype."""
    info, shift = torch.finfo(dtype), _shift(dtype)
    first, one, two = (
        int(magnitude_bits(torch.tensor([number], dtype=dtype))) >> shift
        for number in (info.tiny, 1.0, 2.0)
    )
    infinity = infinity_bits(dtype) >> shift
    starts = np.arange(first, infinity + 1, (two - one) // 4)
    edges = [magnitude_of_bits(int(prefix) << shift, dtype) for prefix in starts[:-1]]
    return Octaves(np.array([*edges, 2.0 * 2.0 ** float(np.frexp(info.max)[1] - 1)]), starts)
