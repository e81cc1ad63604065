"""Where a rank is searched: by counts, by a sample, near the last position, or by a hash's share.

A guess affects only the speed: a window that misses is noticed when its contents are settled, and
another window follows.
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
from deltalens.numerics.selection.keys import Sample, keys_of
from deltalens.numerics.sizes import SIZES

__all__ = [
    "MAX_HASH",
    "MIN_HASH",
    "Candidates",
    "Observed",
    "Window",
    "guess_window",
    "next_window",
    "window_from_sample",
    "windows_by_share",
    "windows_from_tensors",
]

MIN_HASH, MAX_HASH = -(1 << 63), (1 << 63) - 1


class Window(NamedTuple):
    """Keys between which the last entry of a prefix is searched: from `low` to below `high`."""

    low: int
    high: int
    low_hash: int = MIN_HASH
    """Among the entries with the key `low`, those with this hash or a greater one are inside."""
    high_hash: int = MAX_HASH
    """Among the entries with the greatest key, those with this hash or a lesser one are inside."""
    unit: int = 0
    """Index of the unit searched."""
    share: float = 0.0
    """Roughly the share of the unit's entries that lies inside, if it was estimated."""


class Candidates(NamedTuple):
    """Entries of one tensor that lie in a window."""

    name: str
    keys: np.ndarray | None
    """Their keys; None if the window has a single key."""
    indices: np.ndarray | None
    """Flat indices: int64."""
    hashes: np.ndarray | None
    hash_key: int = 0
    """Key of their hash (`hashing.name_key`), if they have not been hashed yet."""

    def hashes_at(self, selected: Any) -> np.ndarray:
        """Return the hashes of some of the entries.

        Args:
            selected: an index into the arrays.

        Returns:
            The hashes, int64.
        """
        if self.hashes is not None:
            hashes: np.ndarray = self.hashes[selected]
            return hashes
        assert self.indices is not None
        hashes = index_hash(torch.from_numpy(self.indices[selected]), self.hash_key).numpy()
        return hashes


@dataclass
class Observed:
    """What one visit observed of a window."""

    below: int = 0
    """Number of entries below the window; or of lesser hashes among those that tie at a single key,
    if the rank is one among them."""
    candidates: list[Candidates] = field(default_factory=list)
    """The entries inside, by tensor."""
    zeros: int = 0
    """Number of entries that are exactly 0, if the visit counts what lies below."""
    finite: bool = True
    """Whether all entries are finite, likewise."""

    def add(self, other: Observed) -> None:
        """Add what was observed in another part.

        Args:
            other: what was observed there.
        """
        self.below += other.below
        self.candidates += other.candidates
        self.zeros += other.zeros
        self.finite &= other.finite

    @property
    def keys(self) -> np.ndarray:
        """The keys of all entries inside."""
        keys = [candidates.keys for candidates in self.candidates if candidates.keys is not None]
        return keys[0] if len(keys) == 1 else np.concatenate(keys or [np.empty(0, np.int64)])


def windows_by_share(rank: int, total: int, key: int = 0) -> Iterator[Window]:
    """Guess the hash at a rank among entries that tie.

    Hashes are uniform, so that the hash lies close to the rank's share of all 64-bit numbers. Each
    further window is wider.

    Args:
        rank: the rank among the tied entries.
        total: the number of tied entries.
        key: their key.

    Returns:
        An endless iterator over windows.
    """
    share, sigmas = (rank + 0.5) / total, SIZES.hash_sigmas
    while True:
        reach = (sigmas * math.sqrt(total * share * (1 - share)) + sigmas) / total
        low, high = (round((at - 0.5) * 2.0**64) for at in (share - reach, share + reach))
        yield Window(key, key + 1, max(low, MIN_HASH), min(high, MAX_HASH))
        sigmas *= 16


def guess_window(
    keys: np.ndarray, rank: int, total: int, hashes: np.ndarray | None = None
) -> Window:
    """Guess the keys around a rank from evenly spaced entries.

    Args:
        keys: keys of evenly spaced entries of the whole.
        rank: a rank in the whole.
        total: the number of entries of the whole.
        hashes: hashes of the same entries, if the window is to end at hashes.

    Returns:
        A window that spans `Sizes.sample_sigmas` standard errors on both sides of the rank's share.
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
    """The hash of the entry at a rank in the order of (key, hash), given its key."""
    rank_within = rank - int(np.count_nonzero(keys < key))
    return int(np.partition(hashes[keys == key], rank_within)[rank_within])


def window_from_sample(sample: Iterable[Sample], rank: int, total: int, seed: int) -> Window:
    """Guess the keys and hashes around a rank from evenly spaced entries of a unit.

    Args:
        sample: the entries, by tensor.
        rank: a rank in the unit.
        total: the number of entries of the unit.
        seed: seed of the hash.

    Returns:
        The window.
    """
    parts = [
        (magnitude_bits(values).cpu().numpy(), index_hash(indices, name_key(seed, name)).cpu())
        for name, indices, values in sample
    ]
    keys, hashes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return guess_window(keys, rank, total, hashes)


def windows_from_tensors(
    tensors: Sequence[Tensor], rank: int, by_value: bool, previous: Window | None = None
) -> Iterator[Window]:
    """Guess the keys around a rank of tensors in memory that are ranked together.

    Args:
        tensors: the tensors, 1-D, of one dtype.
        rank: the rank.
        by_value: rank signed values rather than magnitudes.
        previous: the window for slightly earlier values, if known.

    Returns:
        An iterator over windows: the previous one, one from a sample, and the exact key, which
        takes 8 bytes per entry.
    """
    if previous is not None and previous.share < SIZES.crowded:
        yield previous
    total = sum(values.numel() for values in tensors)
    stride = max(1, total // SIZES.tensor_sample)
    sample = [_keys(values[::stride].contiguous(), by_value) for values in tensors]
    yield guess_window(np.concatenate(sample), rank, total)
    keys = np.concatenate([_keys(values, by_value) for values in tensors])
    keys.partition(rank)
    exact = int(keys[rank])
    yield Window(exact, exact + 1, share=float(np.count_nonzero(keys == exact) / keys.size))


def _keys(values: Tensor, by_value: bool) -> np.ndarray:
    keys: np.ndarray = keys_of(values, by_value).cpu().numpy()
    return keys


def next_window(
    previous: Window | None, window: Window, last_key: int, keys: np.ndarray, size: int
) -> Window:
    """Guess where the boundary will be for slightly later values.

    The window spans four times the distance that the boundary moved; large moves are forgotten
    slowly.

    Args:
        previous: the window around the earlier position, if known.
        window: the window in which the boundary was found.
        last_key: the key of the last entry of the prefix.
        keys: all keys in the window.
        size: the number of entries of the tensor.

    Returns:
        The window.
    """
    half_width = (window.high - window.low) // 2
    if previous is None:
        reach = half_width
    else:
        moved = abs(last_key - (previous.low + previous.high) // 2)
        reach = max(4 * moved, half_width // 2)
    share = keys.size / size * (reach + 1) / (half_width + 1)
    ends = np.iinfo(keys.dtype)
    low, high = max(last_key - reach, int(ends.min)), min(last_key + reach + 1, int(ends.max))
    return Window(low, high, share=share)
