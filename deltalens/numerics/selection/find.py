"""One order over the entries of a unit, and exact selection of a prefix of it.

Entries are ordered by the key (magnitude bits, hash, tensor name, flat index). The hash (see
`hashing`) settles ties without favouring any tensor or row, so a prefix of k entries is always
exactly k entries, and prefixes are nested. Nothing in the key depends on how the data is chunked,
sharded, visited or where it is computed. The order *by hash alone* is a random order.

A prefix is described by its `Boundary`, found by radix: one histogram over the leading 15 bits
serves all prefixes at once; a second pass, over the boundary bins alone, tells fp32 apart; hashes
are computed only for entries that tie at a boundary.
"""

from __future__ import annotations

import functools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deltalens.numerics.bits import CHUNK, PART, digits, integer_of, magnitude_bits
from deltalens.numerics.hashing import index_hash, name_key
from deltalens.numerics.kernels import equal, less, runs_of_true, take
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.counts import MagnitudeHistogram
from deltalens.numerics.selection.windows import Tie, split_ties
from deltalens.numerics.workers import Each, in_order

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "Boundary",
    "Chunk",
    "Members",
    "Part",
    "Source",
    "find_boundaries",
    "find_random_boundaries",
    "find_thresholds",
    "histogram_of",
    "parts_of",
]


class Chunk(NamedTuple):
    """A run of consecutive entries of one tensor."""

    name: str
    """The tensor's name: part of the key."""
    start: int
    """Flat index, within the tensor, of the first entry."""
    values: Tensor
    """The entries, 1-D and contiguous; only their magnitudes are ranked. May be reused after."""


Part = Callable[[], Iterable[Chunk]]
"""Some chunks of a unit, in order; called once a pass, each time from the beginning."""

Source = Sequence[Part]
"""All of a unit, in parts that different threads may visit at the same time."""


@dataclass(frozen=True)
class Boundary:
    """Where a prefix of the order ends."""

    below: int
    """Entries with smaller magnitude bits are all inside."""
    tie: Tie | None = None
    """Of the entries with magnitude bits `below`: inside are those up to this one; None: none."""


NOTHING = Boundary(0)
EVERYTHING = Boundary((1 << 63) - 1)


def parts_of(tensors: Mapping[str, Tensor]) -> Source:
    """Tensors in memory, in parts of a few chunks."""

    def part(name: str, flat: Tensor, first: int, stop: int) -> Iterator[Chunk]:
        for start in range(first, stop, CHUNK):
            yield Chunk(name, start, flat[start : min(start + CHUNK, stop)])

    flats = {name: tensor.detach().contiguous().view(-1) for name, tensor in tensors.items()}
    return [
        functools.partial(part, name, flat, start, min(start + PART, flat.numel()))
        for name, flat in flats.items()
        for start in range(0, flat.numel(), PART)
    ]


def histogram_of(source: Source, each: Each = in_order) -> MagnitudeHistogram | None:
    """One histogram over all chunks of a source; None if it has none."""
    scratch = Scratch()

    def count(part: Part) -> MagnitudeHistogram | None:
        histogram: MagnitudeHistogram | None = None
        for chunk in part():
            if histogram is None:
                histogram = MagnitudeHistogram(chunk.values.dtype, chunk.values.device, scratch)
            histogram.update(chunk.values)
        return histogram

    whole: MagnitudeHistogram | None = None
    for histogram in each(count, source):
        if whole is None:
            whole = histogram
        elif histogram is not None:
            whole.merge(histogram)
    return whole


def find_boundaries(
    source: Source,
    sizes: Sequence[int],
    seed: int = 0,
    histogram: MagnitudeHistogram | None = None,
    each: Each = in_order,
) -> list[Boundary]:
    """The boundaries of the prefixes with these many entries, all from the same passes.

    Args:
        source: the unit's chunks, all of one dtype (fp16, bf16, fp32, fp64), without NaN.
        sizes: how many entries each prefix has, from 0 to the unit's total.
        seed: of the hash that settles ties.
        histogram: of the same source, if it has been made already.
        each: how to visit the parts (`workers.workers()` visits them on all cores).

    Raises:
        IndexError: a size is outside the unit.
    """
    histogram = histogram or histogram_of(source, each)
    total = histogram.total if histogram else 0
    if any(not 0 <= size <= total for size in sizes):
        raise IndexError(f"prefixes of {sorted(sizes)} entries, in a unit of {total}")
    inner = sorted({size for size in sizes if 0 < size < total})
    found = {0: NOTHING, total: EVERYTHING}
    if histogram is not None and inner:
        found |= _inner_boundaries(source, inner, seed, histogram, each)
    return [NOTHING if size == 0 else found[size] for size in sizes]


@dataclass
class _Place:
    """What is known of a prefix's last entry: its leading bits, and how it lies among its like."""

    leading: int
    rank: int
    """Its rank among the entries with the same leading bits."""
    among: int
    """How many those are."""


def find_thresholds(
    source: Source,
    ranks: Sequence[int],
    histogram: MagnitudeHistogram | None = None,
    each: Each = in_order,
) -> list[int]:
    """The magnitude bits of the entries at these ranks (0-based, ascending magnitude).

    Without the order among ties, which nothing but a boundary needs: GMT's T_k (Eq. 3) is the
    magnitude at rank n - k.

    Raises:
        IndexError: a rank is outside the unit.
    """
    histogram = histogram or histogram_of(source, each)
    if histogram is None:
        raise IndexError("ranks in an empty unit")
    return [place.leading for place in _places(source, list(ranks), histogram, each)]


def _places(
    source: Source, ranks: list[int], histogram: MagnitudeHistogram, each: Each
) -> list[_Place]:
    """Radix: the leading 15 bits from the histogram, then 16 at a time."""
    places = [
        _Place(prefix, rank - below, among)
        for rank, (prefix, below, among) in zip(ranks, histogram.prefixes_at(ranks), strict=True)
    ]
    for remaining in range(digits(histogram.dtype) - 1, 0, -1):
        _refine(source, places, 16 * remaining, each)
    return places


def _inner_boundaries(
    source: Source, sizes: list[int], seed: int, histogram: MagnitudeHistogram, each: Each
) -> dict[int, Boundary]:
    last = _places(source, [size - 1 for size in sizes], histogram, each)
    places = dict(zip(sizes, last, strict=True))
    whole = {size: p for size, p in places.items() if p.rank == p.among - 1}
    split = {size: p for size, p in places.items() if size not in whole}
    found = {size: Boundary(place.leading + 1) for size, place in whole.items()}
    if split:
        ranks: dict[int, set[int]] = defaultdict(set)
        for place in split.values():
            ranks[place.leading].add(place.rank)
        counts = {place.leading: place.among for place in split.values()}
        scratch = Scratch()
        levels = list(ranks)
        members = [functools.partial(_tied_at, part, levels, seed, scratch) for part in source]
        ties = split_ties(members, ranks, counts, each)
        for size, place in split.items():
            found[size] = Boundary(place.leading, ties[place.leading, place.rank])
    return found


def _refine(source: Source, places: list[_Place], lower: int, each: Each) -> None:
    """One radix round: tell apart, by their next 16 bits, entries that share leading bits."""
    counts = {place.leading: torch.zeros(1 << 16, dtype=torch.int64) for place in places}
    scratch, adding = Scratch(), threading.Lock()

    def count(part: Part) -> None:
        for chunk in part():
            bits, mask = _bits(chunk.values, scratch)
            relative = scratch.get("relative", bits.dtype, bits.numel(), bits.device)
            for leading, whole in counts.items():
                torch.bitwise_xor(bits, leading << lower, out=relative)
                less(relative, 1 << lower, out=mask)
                inside = take(relative, mask) >> (lower - 16)
                if inside.numel():
                    found = torch.bincount(inside, minlength=1 << 16).cpu()
                    with adding:
                        whole.add_(found)

    for _ in each(count, source):
        pass
    for place in places:
        running = torch.cumsum(counts[place.leading], 0)
        digit = int(torch.searchsorted(running, place.rank, right=True))
        place.among = int(counts[place.leading][digit])
        place.rank -= int(running[digit]) - place.among
        place.leading = place.leading << 16 | digit


def _bits(values: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """The magnitude bits of a chunk, and room for a mask of its size."""
    size, device = values.numel(), values.device
    bits = scratch.get("bits", integer_of(values.dtype), size, device)
    return magnitude_bits(values, out=bits), scratch.get("mask", torch.bool, size, device)


def _tied_at(
    part: Part, levels: list[int], seed: int, scratch: Scratch
) -> Iterator[tuple[int, str, Tensor]]:
    for chunk in part():
        bits, mask = _bits(chunk.values, scratch)
        for level in levels:
            equal(bits, level, out=mask)
            for indices in runs_of_true(mask):
                key = name_key(seed, chunk.name)
                yield level, chunk.name, index_hash(indices.add_(chunk.start), key)


Members = Callable[[], Iterable[tuple[str, Tensor]]]
"""Some of a unit's entries: (tensor name, their hashes), each valid until the next one."""


def find_random_boundaries(
    members: Sequence[Members], total: int, sizes: Sequence[int], each: Each = in_order
) -> list[Boundary]:
    """The boundaries of prefixes of the order by hash alone: random drops of exact size.

    Args:
        members: the unit's entries, in parts.
        total: how many those are.
        sizes: how many entries each prefix has.
        each: how to visit the parts.

    Raises:
        IndexError: a size is outside the unit.
    """
    if any(not 0 <= size <= total for size in sizes):
        raise IndexError(f"prefixes of {sorted(sizes)} entries, in a unit of {total}")

    def grouped(part: Members) -> Iterator[tuple[int, str, Tensor]]:
        return ((0, name, hashes) for name, hashes in part())

    ranks = {0: {size - 1 for size in sizes if 0 < size < total}}
    ties: dict[tuple[int, int], Tie] = {}
    if ranks[0]:
        parts = [functools.partial(grouped, part) for part in members]
        ties = split_ties(parts, ranks, {0: total}, each)
    return [
        NOTHING if size == 0 else EVERYTHING if size == total else Boundary(0, ties[0, size - 1])
        for size in sizes
    ]
