"""The kinds of searches: for the entry at a rank, for a known boundary, or digit by digit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.selection.counts import Counts, locate
from deltalens.numerics.selection.keys import prefix_shift
from deltalens.numerics.selection.prefix import Boundary, Tie
from deltalens.numerics.selection.windows import MAX_HASH, Candidates, Observed, Window

__all__ = ["DigitWindow", "KnownBoundary", "RadixSearch", "RankSearch", "searches_from_counts"]


@dataclass
class RankSearch:
    """Search for the entry at a rank.

    Args:
        windows: one window after the other, until one holds the entry.
        rank: 0-based and ascending, as the visit counts what lies below.
        ties: whether the prefix ends among the entries that tie with this one, by hash; otherwise
            it ends before all of them (GMT's Eq. 3: what ties with the threshold stays).
    """

    windows: Iterator[Window]
    rank: int
    ties: bool = True

    def settle(self, window: Window, observed: Observed) -> Boundary | None:
        """Determine where the prefix ends whose last entry is searched.

        Args:
            window: the window that was visited.
            observed: what was observed in it.

        Returns:
            The boundary; None if the entry is not in the window.
        """
        rank_inside, key, candidates = self.rank - observed.below, window.low, observed.candidates
        if window.high <= window.low + 1:
            if not self.ties:
                return Boundary(key)
        else:
            keys = observed.keys
            if not 0 <= rank_inside < keys.size:
                return None
            key = int(np.partition(keys, rank_inside)[rank_inside])
            if not self.ties:
                return Boundary(key)
            rank_inside -= int(np.count_nonzero(keys < key))
            hash_limited = key + 1 == window.high and window.high_hash < MAX_HASH
            if not hash_limited and rank_inside == np.count_nonzero(keys == key) - 1:
                return Boundary(key + 1)
        tie = _tie_at(rank_inside, key, candidates)
        return None if tie is None else Boundary(key, tie)


def _tie_at(rank_within: int, key: int, candidates: Sequence[Candidates]) -> Tie | None:
    """The entry at a rank in the order of (hash, name) among those that tie at a key; None if it is
    not among the candidates. Entries of one tensor never share a hash."""
    every_entry = slice(None)
    tied = [
        (group.name, group.hashes_at(every_entry if group.keys is None else group.keys == key))
        for group in candidates
    ]
    hashes = (
        np.concatenate([group_hashes for _, group_hashes in tied])
        if tied
        else np.empty(0, np.int64)
    )
    if not 0 <= rank_within < len(hashes):
        return None
    last_hash = int(np.partition(hashes, rank_within)[rank_within])
    owners = sorted(
        name
        for name, group_hashes in tied
        for _ in range(np.count_nonzero(group_hashes == last_hash))
    )
    return Tie(last_hash, owners[rank_within - int(np.count_nonzero(hashes < last_hash))])


@dataclass
class KnownBoundary:
    """A prefix whose end is known; the visit is made for its effect."""

    windows: Iterator[Window]
    boundary: Boundary

    def settle(self, window: Window, observed: Observed) -> Boundary:
        """Return the boundary.

        Args:
            window: the window that was visited.
            observed: what was observed in it.

        Returns:
            The boundary.
        """
        return self.boundary


class DigitWindow(NamedTuple):
    """A window as wide as the bits that are still unknown, for each rank: its entries are counted
    by their next digit."""

    leading: Tensor
    """The magnitude bits that are known, int64, (U, R)."""
    bits_left: int
    """The number of bits that are still unknown."""
    digit_bits: int
    """The number of bits by which entries are counted at a time."""


class RadixSearch:
    """Search for magnitudes digit by digit, at R ranks of U units at once.

    Memory is constant however many entries are near, and nothing waits for a device: each round's
    window follows from the previous one without reading it.

    Args:
        dtype: dtype of the entries.
        counts: counts by prefix, int64, (U, 32768).
        ranks: 0-based, in ascending order of magnitude: int64, (U, R).
        digit_bits: the number of bits that each round finds.
    """

    def __init__(self, dtype: torch.dtype, counts: Tensor, ranks: Tensor, digit_bits: int) -> None:
        self.leading, self.ranks_within, self.counts_within = locate(counts, ranks)
        """The magnitude bits; the rank among the entries that have them; how many those are."""
        shift = prefix_shift(dtype)
        self.windows: Iterator[DigitWindow] = (
            DigitWindow(self.leading, bits_left, digit_bits)
            for bits_left in range(shift, 0, -digit_bits)
        )

    def settle(self, window: DigitWindow, counts: Tensor) -> Tensor | None:
        """Narrow the search by one digit.

        Args:
            window: the window that was visited.
            counts: counts by the next digit: int64, (U, R, 2^digit bits).

        Returns:
            The magnitude bits of the entries, if this was the last digit; otherwise None.
        """
        digit, ranks_within, counts_within = locate(counts, self.ranks_within.unsqueeze(-1))
        self.leading = (window.leading << window.digit_bits) | digit.squeeze(-1)
        self.ranks_within, self.counts_within = ranks_within.squeeze(-1), counts_within.squeeze(-1)
        return self.leading if window.bits_left == window.digit_bits else None


def searches_from_counts(counts: Counts, ranks: Sequence[int], unit: int) -> list[RankSearch]:
    """Search in the bins that counts name, which certainly hold the magnitudes at these ranks. Ties
    stay outside the prefix.

    Args:
        counts: the counts of a unit.
        ranks: 0-based, in ascending order of magnitude.
        unit: index of the unit.

    Returns:
        One search per rank.
    """
    shift, searches = prefix_shift(counts.dtype), []
    for prefix, rank in zip(*counts.prefixes_at(ranks), strict=True):
        exact = not shift or (prefix == 0 and rank < counts.zeros)
        window = Window(prefix << shift, (prefix + (not exact)) << shift, unit=unit)
        searches.append(RankSearch(iter([window]), rank, ties=False))
    return searches
