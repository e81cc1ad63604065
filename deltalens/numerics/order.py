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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import CHUNK, PART, digits, magnitude_bits
from deltalens.numerics.hashing import index_hash, name_key
from deltalens.numerics.histogram import MagnitudeHistogram
from deltalens.numerics.kernels import equal, less, take, where_true
from deltalens.numerics.workers import Each, in_order

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "Boundary",
    "Chunk",
    "Members",
    "Part",
    "Source",
    "Tie",
    "find_boundaries",
    "find_random_boundaries",
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


class Tie(NamedTuple):
    """The last entry, among those that tie, of a prefix."""

    hash: int
    name: str


@dataclass(frozen=True)
class Boundary:
    """Where a prefix of the order ends."""

    below: int
    """Entries with smaller magnitude bits are all inside."""
    tie: Tie | None = None
    """Of the entries with magnitude bits `below`: inside are those up to this one; None: none."""


NOTHING = Boundary(0)
EVERYTHING = Boundary((1 << 63) - 1)

_GATHER = 1 << 20
"""Tied entries that are simply gathered and sorted; more are narrowed by a histogram first."""

_Members = Sequence[Callable[[], Iterable[tuple[int, str, Tensor]]]]
"""Tied entries, in parts: (group, tensor name, flat indices as int64, free to overwrite)."""


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

    def count(part: Part) -> MagnitudeHistogram | None:
        histogram: MagnitudeHistogram | None = None
        for chunk in part():
            if histogram is None:
                histogram = MagnitudeHistogram(chunk.values.dtype, chunk.values.device)
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


def _inner_boundaries(
    source: Source, sizes: list[int], seed: int, histogram: MagnitudeHistogram, each: Each
) -> dict[int, Boundary]:
    starts = histogram.prefixes_at([size - 1 for size in sizes])
    places = {
        size: _Place(prefix, size - 1 - below, among)
        for size, (prefix, below, among) in zip(sizes, starts, strict=True)
    }
    for remaining in range(digits(histogram.dtype) - 1, 0, -1):
        _refine(source, list(places.values()), 16 * remaining, each)

    whole = {size: p for size, p in places.items() if p.rank == p.among - 1}
    split = {size: p for size, p in places.items() if size not in whole}
    found = {size: Boundary(place.leading + 1) for size, place in whole.items()}
    if split:
        ranks: dict[int, set[int]] = defaultdict(set)
        for place in split.values():
            ranks[place.leading].add(place.rank)
        counts = {place.leading: place.among for place in split.values()}
        members = [functools.partial(_tied_at, part, list(ranks)) for part in source]
        ties = _split_ties(members, ranks, counts, seed, each)
        for size, place in split.items():
            found[size] = Boundary(place.leading, ties[place.leading, place.rank])
    return found


def _refine(source: Source, places: list[_Place], lower: int, each: Each) -> None:
    """One radix round: tell apart, by their next 16 bits, entries that share leading bits."""
    leadings = {place.leading for place in places}

    def count(part: Part) -> dict[int, Tensor]:
        found: dict[int, list[Tensor]] = {leading: [] for leading in leadings}
        scratch = _Scratch()
        for chunk in part():
            bits, mask = scratch.bits(chunk.values)
            relative = scratch.like(bits)
            for leading, digits_found in found.items():
                torch.bitwise_xor(bits, leading << lower, out=relative)
                less(relative, 1 << lower, out=mask)
                digits_found.append(take(relative, mask) >> (lower - 16))
        return {
            leading: torch.bincount(torch.cat(parts), minlength=1 << 16).cpu()
            for leading, parts in found.items()
        }

    counts = _added(each(count, source))
    for place in places:
        running = torch.cumsum(counts[place.leading], 0)
        digit = int(torch.searchsorted(running, place.rank, right=True))
        place.among = int(counts[place.leading][digit])
        place.rank -= int(running[digit]) - place.among
        place.leading = place.leading << 16 | digit


def _added(parts: Iterable[dict[int, Tensor]]) -> dict[int, Tensor]:
    whole: dict[int, Tensor] = {}
    for part in parts:
        for group, count in part.items():
            whole[group] = whole[group].add_(count) if group in whole else count
    return whole


class _Scratch:
    """Buffers of a pass, made once and reused for every chunk."""

    def __init__(self) -> None:
        self._bits = self._like = self._mask = torch.empty(0)

    def bits(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The magnitude bits of a chunk, and a mask buffer of its size."""
        if self._mask.numel() < values.numel():
            self._bits = magnitude_bits(torch.empty_like(values))
            self._like = torch.empty_like(self._bits)
            self._mask = torch.empty_like(values, dtype=torch.bool)
        bits = self._bits[: values.numel()]
        return magnitude_bits(values, out=bits), self._mask[: values.numel()]

    def like(self, bits: Tensor) -> Tensor:
        """A second buffer of the same kind."""
        return self._like[: bits.numel()]


def _tied_at(part: Part, levels: list[int]) -> Iterator[tuple[int, str, Tensor]]:
    scratch = _Scratch()
    for chunk in part():
        bits, mask = scratch.bits(chunk.values)
        for level in levels:
            equal(bits, level, out=mask)
            indices = where_true(mask)
            if indices.numel():
                yield level, chunk.name, indices.add_(chunk.start)


def _split_ties(
    members: _Members,
    ranks: Mapping[int, set[int]],
    counts: Mapping[int, int],
    seed: int,
    each: Each,
) -> dict[tuple[int, int], Tie]:
    """For each group of tied entries and each rank in it, the entry at that rank."""
    bins: dict[tuple[int, int], _Bin]
    if sum(counts.values()) > _GATHER:
        bins = _hash_bins(members, ranks, seed, each)
    else:
        bins = {(group, rank): _Bin(None, rank) for group in ranks for rank in ranks[group]}
    wanted = {(group, found.place) for (group, _), found in bins.items()}

    gathered: dict[tuple[int, int | None], list[tuple[str, Tensor]]] = defaultdict(list)
    for part in each(functools.partial(_gather, wanted=wanted, seed=seed), members):
        for key, name, hashes in part:
            gathered[key].append((name, hashes))
    found_at: dict[tuple[int, int | None], dict[int, Tie]] = {}
    for key, ties in gathered.items():
        ranks_there = [b.rank for (group, _), b in bins.items() if (group, b.place) == key]
        found_at[key] = _Ties(ties).at(ranks_there)
    return {
        (group, rank): found_at[group, found.place][found.rank]
        for (group, rank), found in bins.items()
    }


class _Bin(NamedTuple):
    """Where, among tied entries, a rank lies."""

    place: int | None
    """The leading 16 bits of the hash; None: not narrowed down."""
    rank: int
    """The rank among the entries with these."""


def _hashed(
    part: Callable[[], Iterable[tuple[int, str, Tensor]]], seed: int
) -> Iterator[tuple[int, str, Tensor]]:
    for group, name, indices in part():
        yield group, name, index_hash(indices, name_key(seed, name))


def _gather(
    part: Callable[[], Iterable[tuple[int, str, Tensor]]],
    *,
    wanted: set[tuple[int, int | None]],
    seed: int,
) -> list[tuple[tuple[int, int | None], str, Tensor]]:
    """The hashes of one part that lie in wanted bins."""
    found: list[tuple[tuple[int, int | None], str, Tensor]] = []
    for group, name, hashes in _hashed(part, seed):
        leading = _leading(hashes)
        for key in wanted:
            if key[0] != group:
                continue
            kept = hashes if key[1] is None else take(hashes, leading == key[1])
            if kept.numel():
                found.append((key, name, kept.cpu()))
    return found


def _leading(hashes: Tensor) -> Tensor:
    """The leading 16 bits of signed hashes, as int32 from 0 to 65,535, in the same order."""
    return hashes.view(torch.int16)[3::4].to(torch.int32).add_(1 << 15)


def _hash_bins(
    members: _Members, ranks: Mapping[int, set[int]], seed: int, each: Each
) -> dict[tuple[int, int], _Bin]:
    """For each (group, rank): the bin of hashes it lies in."""

    def count(part: Callable[[], Iterable[tuple[int, str, Tensor]]]) -> dict[int, Tensor]:
        return _added(
            {group: torch.bincount(_leading(hashes), minlength=1 << 16).cpu()}
            for group, _, hashes in _hashed(part, seed)
        )

    counts = _added(each(count, members))
    bins: dict[tuple[int, int], _Bin] = {}
    for group, wanted in ranks.items():
        running = torch.cumsum(counts[group], 0)
        for rank in wanted:
            place = int(torch.searchsorted(running, rank, right=True))
            bins[group, rank] = _Bin(place, rank - int(running[place] - counts[group][place]))
    return bins


class _Ties:
    """Tied entries, to be asked for the one at a rank in the order of (hash, name)."""

    def __init__(self, found: list[tuple[str, Tensor]]) -> None:
        self._found = found
        self._hashes = np.concatenate([part.numpy() for _, part in found])

    def at(self, ranks: Iterable[int]) -> dict[int, Tie]:
        """The entries at these ranks. Entries of one tensor never share a hash."""
        wanted = sorted(ranks)
        placed = np.partition(self._hashes, wanted)
        return {rank: self._owner(int(placed[rank]), rank) for rank in wanted}

    def _owner(self, value: int, rank: int) -> Tie:
        owners = sorted({name for name, part in self._found if (part.numpy() == value).any()})
        before = int(np.count_nonzero(self._hashes < value)) if len(owners) > 1 else rank
        return Tie(value, owners[rank - before])


Members = Callable[[], Iterable[tuple[str, Tensor]]]
"""Some of a unit's entries: (tensor name, flat indices as int64, free to overwrite)."""


def find_random_boundaries(
    members: Sequence[Members], total: int, sizes: Sequence[int], seed: int, each: Each = in_order
) -> list[Boundary]:
    """The boundaries of prefixes of the order by hash alone: random drops of exact size.

    Args:
        members: the unit's entries, in parts.
        total: how many those are.
        sizes: how many entries each prefix has.
        seed: whose randomness.
        each: how to visit the parts.

    Raises:
        IndexError: a size is outside the unit.
    """
    if any(not 0 <= size <= total for size in sizes):
        raise IndexError(f"prefixes of {sorted(sizes)} entries, in a unit of {total}")

    def grouped(part: Members) -> Iterator[tuple[int, str, Tensor]]:
        return ((0, name, indices) for name, indices in part())

    ranks = {0: {size - 1 for size in sizes if 0 < size < total}}
    ties: dict[tuple[int, int], Tie] = {}
    if ranks[0]:
        parts = [functools.partial(grouped, part) for part in members]
        ties = _split_ties(parts, ranks, {0: total}, seed, each)
    return [
        NOTHING if size == 0 else EVERYTHING if size == total else Boundary(0, ties[0, size - 1])
        for size in sizes
    ]
