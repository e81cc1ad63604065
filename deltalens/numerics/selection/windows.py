"""Where a rank is looked for: from counts, from a sample, from last time, or from a hash's share.

A guess decides only the speed: a window that misses is noticed when what was seen in it is settled,
and another one follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import magnitude_bits
from deltalens.numerics.hashing import index_hash, name_key
from deltalens.numerics.selection.counts import Counts, locate
from deltalens.numerics.selection.keys import Sample, keys_of, prefix_shift
from deltalens.numerics.selection.prefix import Boundary, Tie
from deltalens.numerics.sizes import SIZES

__all__ = [
    "Candidates",
    "DigitWindow",
    "KnownBoundary",
    "Observed",
    "RadixSearch",
    "RankSearch",
    "Window",
    "guess_window",
    "next_window",
    "searches_from_counts",
    "window_from_sample",
    "windows_by_share",
    "windows_from_tensor",
]

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


class Window(NamedTuple):
    """Keys between which the last entry of a prefix is looked for: from `low`, below `high`."""

    low: int
    high: int
    low_hash: int = _LEAST
    """Of the entries with the key `low`, those with this hash or a greater one."""
    high_hash: int = _MOST
    """Of the entries with the greatest key, those with this hash or a lesser one."""
    of: int = 0
    """Which unit is meant."""
    share: float = 0.0
    """About how much of the unit lies inside, where that has been guessed."""


class Candidates(NamedTuple):
    """Entries of one tensor that lie in a window."""

    name: str
    keys: np.ndarray | None
    """None where the window has a single key."""
    places: np.ndarray | None
    """Flat indices: int64."""
    hashes: np.ndarray | None
    hash_key: int = 0
    """What hashes them (`hashing.name_key`), where that has not been done."""

    def hashes_at(self, chosen: Any) -> np.ndarray:
        """The hashes of some of them, by an index of the arrays."""
        if self.hashes is not None:
            found: np.ndarray = self.hashes[chosen]
            return found
        assert self.places is not None
        found = index_hash(torch.from_numpy(self.places[chosen]), self.hash_key).numpy()
        return found


@dataclass
class Observed:
    """What one visit found of a window."""

    below: int = 0
    """Entries below it; of those that tie at a single key, if the rank is one among them."""
    inside: list[Candidates] = field(default_factory=list)
    zeros: int = 0
    """Entries that are exactly 0, if the visit was told to count those below."""
    finite: bool = True
    """Whether all entries are, likewise."""

    def add(self, other: Observed) -> None:
        """Join what another part found."""
        self.below += other.below
        self.inside += other.inside
        self.zeros += other.zeros
        self.finite &= other.finite

    @property
    def keys(self) -> np.ndarray:
        """The keys of all that lie inside."""
        keys = [one.keys for one in self.inside if one.keys is not None]
        return keys[0] if len(keys) == 1 else np.concatenate(keys or [np.empty(0, np.int64)])


@dataclass
class RankSearch:
    """An entry that is looked for: the windows in which it may be, and its rank.

    Args:
        windows: one after the other, until one holds it.
        rank: 0-based, ascending, as the visit counts what lies below.
        ties: whether the prefix ends among the entries that tie with it, by hash; else before all
            of them (GMT's Eq. 3: what ties with the threshold stays).
    """

    windows: Iterator[Window]
    rank: int
    ties: bool = True

    def settle(self, window: Window, seen: Observed) -> Boundary | None:
        """Where the prefix ends that this entry is the last of; None if it was not seen."""
        place, key, inside = self.rank - seen.below, window.low, seen.inside
        if window.high <= window.low + 1:
            if not self.ties:
                return Boundary(key)
        else:
            keys = seen.keys
            if not 0 <= place < keys.size:
                return None
            key = int(np.partition(keys, place)[place])
            if not self.ties:
                return Boundary(key)
            place -= int(np.count_nonzero(keys < key))
            last = key + 1 == window.high and window.high_hash < _MOST
            if not last and place == np.count_nonzero(keys == key) - 1:
                return Boundary(key + 1)
        tie = _tie_at(place, key, inside)
        return None if tie is None else Boundary(key, tie)


def _tie_at(place: int, key: int, inside: Sequence[Candidates]) -> Tie | None:
    """Of the entries that tie at a key, the one at a place in the order of (hash, name); None if it
    is not here. Entries of one tensor never share a hash."""
    everywhere = slice(None)
    tied = [
        (one.name, one.hashes_at(everywhere if one.keys is None else one.keys == key))
        for one in inside
    ]
    hashes = np.concatenate([some for _, some in tied]) if tied else np.empty(0, np.int64)
    if not 0 <= place < len(hashes):
        return None
    value = int(np.partition(hashes, place)[place])
    owners = sorted(name for name, some in tied for _ in range(np.count_nonzero(some == value)))
    return Tie(value, owners[place - int(np.count_nonzero(hashes < value))])


@dataclass
class KnownBoundary:
    """A prefix whose end is known; a visit is wanted for what it does."""

    windows: Iterator[Window]
    boundary: Boundary

    def settle(self, window: Window, seen: Observed) -> Boundary:
        """The boundary."""
        return self.boundary


class DigitWindow(NamedTuple):
    """A window as wide as the bits that are not known yet, of each rank: its entries are counted by
    their next digit."""

    leading: Tensor
    """The magnitude bits that are known, int64, (U, R)."""
    lower: int
    """How many more there are."""
    digit: int
    """How many of those are counted by at a time."""


class RadixSearch:
    """Magnitudes that are looked for digit by digit, at R ranks of U units at once.

    Constant memory however many entries are near, and nothing waits for a device: each round's
    window follows from the one before without looking at it.

    Args:
        dtype: of the entries.
        counts: by prefix, int64, (U, 32768).
        ranks: 0-based, ascending magnitude: int64, (U, R).
        digit: bits that a round finds.
    """

    def __init__(self, dtype: torch.dtype, counts: Tensor, ranks: Tensor, digit: int) -> None:
        self.leading, self.inside, self.among = locate(counts, ranks)
        """The magnitude bits; the rank among the entries that have them; how many those are."""
        shift = prefix_shift(dtype)
        self.windows: Iterator[DigitWindow] = (
            DigitWindow(self.leading, at, digit) for at in range(shift, 0, -digit)
        )

    def settle(self, window: DigitWindow, counts: Tensor) -> Tensor | None:
        """The magnitude bits of the entries, if this was the last digit.

        Args:
            window: that was visited.
            counts: by the next digit: int64, (U, R, 2^digit).
        """
        digit, inside, among = locate(counts, self.inside.unsqueeze(-1))
        self.leading = (window.leading << window.digit) | digit.squeeze(-1)
        self.inside, self.among = inside.squeeze(-1), among.squeeze(-1)
        return self.leading if window.lower == window.digit else None


def searches_from_counts(counts: Counts, ranks: Sequence[int], of: int) -> list[RankSearch]:
    """The bins that counts name: they hold the magnitudes at these ranks for certain. What ties
    with them stays outside the prefix."""
    shift, found = prefix_shift(counts.dtype), []
    for prefix, rank in zip(*counts.prefixes_at(ranks), strict=True):
        exact = not shift or (prefix == 0 and rank < counts.zeros)
        window = Window(prefix << shift, (prefix + (not exact)) << shift, of=of)
        found.append(RankSearch(iter([window]), rank, ties=False))
    return found


def windows_by_share(rank: int, among: int, key: int = 0) -> Iterator[Window]:
    """Hashes are uniform, so that of a rank among entries that tie lies close to its share of all
    64-bit numbers; further and further out, should it not."""
    share, sigmas = (rank + 0.5) / among, SIZES.hash_sigmas
    while True:
        reach = (sigmas * math.sqrt(among * share * (1 - share)) + sigmas) / among
        low, high = (round((place - 0.5) * 2.0**64) for place in (share - reach, share + reach))
        yield Window(key, key + 1, max(low, _LEAST), min(high, _MOST))
        sigmas *= 16


def guess_window(
    keys: np.ndarray, rank: int, total: int, hashes: np.ndarray | None = None
) -> Window:
    """The keys around a rank of a whole, guessed from evenly spaced entries of it.

    Args:
        keys: of the evenly spaced entries.
        rank: within the whole.
        total: entries of the whole.
        hashes: of the same entries, where the window is to end at hashes.

    Returns:
        `Sizes.sample_sigmas` standard errors to both sides of the rank's share.
    """
    share, ends = rank / total, np.iinfo(keys.dtype)
    reach = SIZES.sample_sigmas * math.sqrt(keys.size * share * (1 - share)) + 2
    first, last = math.floor(share * keys.size - reach), math.ceil(share * keys.size + reach)
    ranked = np.partition(keys, [at for at in (first, last) if 0 <= at < keys.size] or [0])
    low = int(ranked[first]) if first >= 0 else int(ends.min)
    high = int(ranked[last]) + 1 if last < keys.size else int(ends.max)
    inside = np.count_nonzero((keys >= low) & (keys < high))
    window = Window(low, high, share=inside / keys.size)
    if hashes is None:
        return window
    if first >= 0:
        window = window._replace(low_hash=_hash_at(keys, hashes, low, first))
    if last < keys.size:
        window = window._replace(high_hash=_hash_at(keys, hashes, high - 1, last))
    return window


def _hash_at(keys: np.ndarray, hashes: np.ndarray, key: int, rank: int) -> int:
    """The hash of the entry at a rank in the order of (key, hash), whose key is known."""
    place = rank - int(np.count_nonzero(keys < key))
    return int(np.partition(hashes[keys == key], place)[place])


def window_from_sample(sample: Iterable[Sample], rank: int, total: int, seed: int) -> Window:
    """The keys, hashes included, around a rank, from evenly spaced entries of a unit."""
    parts = [
        (magnitude_bits(values).cpu().numpy(), index_hash(indices, name_key(seed, name)).cpu())
        for name, indices, values in sample
    ]
    keys, hashes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return guess_window(keys, rank, total, hashes)


def windows_from_tensor(
    values: Tensor, rank: int, by_value: bool, near: Window | None
) -> Iterator[Window]:
    """Where the entry at a rank of a tensor in memory may be: where it was; from a sample; and
    exactly, which takes 8 bytes an entry."""
    if near is not None and near.share < SIZES.crowded:
        yield near
    sample = values[:: max(1, values.numel() // SIZES.tensor_sample)].contiguous()
    yield guess_window(keys_of(sample, by_value).cpu().numpy(), rank, values.numel())
    keys = keys_of(values, by_value).cpu().numpy().copy()
    keys.partition(rank)
    found = int(keys[rank])
    yield Window(found, found + 1, share=float(np.count_nonzero(keys == found) / keys.size))


def next_window(
    near: Window | None, window: Window, last: int, keys: np.ndarray, size: int
) -> Window:
    """Where to look next time: around the last entry, four times as far as it came; far moves are
    forgotten slowly.

    Args:
        near: around where it was before, if that is known.
        window: where it was found.
        last: its key.
        keys: all that lie in the window.
        size: entries in all.
    """
    half = (window.high - window.low) // 2
    reach = half if near is None else max(4 * abs(last - (near.low + near.high) // 2), half // 2)
    share = keys.size / size * (reach + 1) / (half + 1)
    ends = np.iinfo(keys.dtype)
    low, high = max(last - reach, int(ends.min)), min(last + reach + 1, int(ends.max))
    return Window(low, high, share=share)
