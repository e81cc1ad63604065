"""One rank, in one pass: guess a bracket around it, count what lies below, gather what is inside.

For a single rank this is several times cheaper than a histogram, which serves all ranks at once.
The guess, from evenly spaced entries, decides only the speed: a bracket that misses is noticed,
and the caller falls back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import infinity_bits, integer_of, magnitude_bits
from deltalens.numerics.hashing import index_hash, name_key
from deltalens.numerics.kernels import (
    count_true,
    count_zeros,
    largest,
    less,
    less_equal,
    runs_of_true,
    take_at,
)
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.find import EVERYTHING, NOTHING, Boundary, Part, Source
from deltalens.numerics.selection.windows import Near
from deltalens.numerics.workers import Each, in_order

__all__ = ["Bracketed", "Sample", "around", "find_boundary", "sample_stride"]

_SAMPLE = 1 << 14
"""Entries sampled: few, for in a file every one of them touches a page."""
_SIGMAS = 3.0


class Sample(NamedTuple):
    """Some entries of one tensor, evenly spaced."""

    name: str
    indices: Tensor
    """Flat indices, int64; free to overwrite."""
    values: Tensor
    """The entries themselves, 1-D."""


class Bracketed(NamedTuple):
    """What one pass found."""

    boundary: Boundary | None
    """None if the bracket missed."""
    zeros: int
    """Entries that are exactly 0."""
    finite: bool
    """Whether all entries are."""


def sample_stride(total: int) -> int:
    """How far apart the sampled entries of a unit lie."""
    return max(1, total // _SAMPLE)


def find_boundary(
    source: Source,
    size: int,
    total: int,
    sample: Iterable[Sample],
    seed: int = 0,
    each: Each = in_order,
) -> Bracketed:
    """The boundary of the prefix with so many entries (`order.find_boundaries`, for one size).

    Memory: what lies in the bracket, about a fiftieth of the unit.

    Args:
        source: the unit's chunks, all of one dtype (fp16, bf16, fp32, fp64).
        size: how many entries the prefix has, from 0 to `total`.
        total: entries in the unit.
        sample: of the unit's entries, `sample_stride` apart.
        seed: of the hash that settles ties.
        each: how to visit the parts.

    Raises:
        IndexError: the size is outside the unit.
    """
    if not 0 <= size <= total:
        raise IndexError(f"a prefix of {size} entries, in a unit of {total}")
    keys = _key_range(sample, size - 1, total, seed) if 0 < size < total else None
    scratch = Scratch()

    def visit(part: Part) -> _Inside:
        return _look(part, keys, seed, scratch)

    whole = _Inside()
    for inside in each(visit, source):
        whole.add(inside)
    if keys is None:
        return Bracketed(NOTHING if size == 0 else EVERYTHING, whole.zeros, whole.finite)
    return Bracketed(whole.boundary_at(size - 1, keys), whole.zeros, whole.finite)


class _KeyRange(NamedTuple):
    """Keys (magnitude bits, hash), from the lowest to the highest, both inclusive."""

    low: int
    low_hash: int
    high: int
    high_hash: int


def _key_range(sample: Iterable[Sample], rank: int, total: int, seed: int) -> _KeyRange:
    """From a sample, keys around the one at a rank."""
    parts = [
        (magnitude_bits(values).cpu().numpy(), index_hash(indices, name_key(seed, name)).cpu())
        for name, indices, values in sample
    ]
    bits = np.concatenate([some for some, _ in parts])
    hashes = np.concatenate([some.numpy() for _, some in parts])
    first, last = around(rank, total, bits.size)
    lowest = (0, -(1 << 63))
    highest = (int(np.iinfo(bits.dtype).max), (1 << 63) - 1)
    return _KeyRange(
        *(_key_at(bits, hashes, first) if first >= 0 else lowest),
        *(_key_at(bits, hashes, last) if last < bits.size else highest),
    )


def _key_at(bits: np.ndarray, hashes: np.ndarray, rank: int) -> tuple[int, int]:
    """The key at a rank in the order of (bits, hash)."""
    value = np.partition(bits, rank)[rank]
    tied = hashes[bits == value]
    place = rank - int(np.count_nonzero(bits < value))
    return int(value), int(np.partition(tied, place)[place])


def around(rank: int, total: int, sampled: int) -> tuple[int, int]:
    """Where a rank of the whole is looked for in a sample of it: ranks three standard errors to
    both sides of its share; they may lie outside the sample."""
    share = rank / total
    reach = _SIGMAS * math.sqrt(sampled * share * (1 - share)) + 2
    return math.floor(share * sampled - reach), math.ceil(share * sampled + reach)


class _Inside:
    """What a pass found: how many keys lie below the range, and those inside."""

    def __init__(self) -> None:
        self.below = self.zeros = 0
        self.finite = True
        self.keys: list[tuple[str, np.ndarray, Tensor]] = []

    def add(self, other: _Inside) -> None:
        """Join what another part found."""
        self.below += other.below
        self.zeros += other.zeros
        self.finite &= other.finite
        self.keys += other.keys

    def boundary_at(self, rank: int, keys: _KeyRange) -> Boundary | None:
        """The boundary after the entry at a rank; None if it is not inside these keys."""
        place = rank - self.below
        bits = np.concatenate([bits for _, bits, _ in self.keys]) if self.keys else np.empty(0)
        if not 0 <= place < bits.size:
            return None
        value = int(np.partition(bits, place)[place])
        place -= int(np.count_nonzero(bits < value))
        if value < keys.high and place == np.count_nonzero(bits == value) - 1:
            return Boundary(value + 1)
        near = Near()
        for name, some, hashes in self.keys:
            tied = hashes[torch.from_numpy(some == value)]
            if tied.numel():
                near.inside.append((name, tied))
        return Boundary(value, near.at(place))


def _look(part: Part, keys: _KeyRange | None, seed: int, scratch: Scratch) -> _Inside:
    """What one part has inside a range of keys."""
    found = _Inside()
    for name, start, values in part():
        size, device = values.numel(), values.device
        bits = scratch.get("bits", integer_of(values.dtype), size, device)
        magnitude_bits(values, out=bits)
        found.zeros += count_zeros(bits)
        found.finite &= largest(bits) < infinity_bits(values.dtype)
        if keys is None:
            continue
        under = less(bits, keys.low, out=scratch.get("under", torch.bool, size, device))
        found.below += count_true(under)
        within = less_equal(bits, keys.high, out=scratch.get("within", torch.bool, size, device))
        for indices in runs_of_true(within.logical_xor_(under)):
            _gather(found, name, start, bits, indices, keys, seed)
    return found


def _gather(
    found: _Inside,
    name: str,
    start: int,
    bits: Tensor,
    indices: Tensor,
    keys: _KeyRange,
    seed: int,
) -> None:
    """Keep the keys inside the range, of entries whose magnitude bits are."""
    inside = take_at(bits, indices).cpu().numpy()
    hashes = index_hash(indices.add_(start), name_key(seed, name)).cpu()
    before = (inside == keys.low) & (hashes.numpy() < keys.low_hash)
    found.below += int(np.count_nonzero(before))
    after = (inside == keys.high) & (hashes.numpy() > keys.high_hash)
    kept = np.flatnonzero(~(before | after))
    found.keys.append((name, inside[kept], torch.from_numpy(hashes.numpy()[kept])))
