"""Ranks among entries that tie: by hash, found without keeping or sorting the hashes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.kernels import count_true, less, less_equal, take
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import Each

__all__ = ["SIGMAS", "Near", "Tie", "Tied", "hash_window", "split_ties", "up_to"]

SIGMAS = 8.0
"""Standard errors to both sides of a rank's share within which its hash is looked for first."""

Tied = Callable[[], Iterable[tuple[int, str, Tensor]]]
"""Some tied entries: (group, tensor name, hashes), each valid until the next one."""


class Tie(NamedTuple):
    """The last entry, among those that tie, of a prefix."""

    hash: int
    name: str


def up_to(tie: Tie, name: str) -> Callable[..., Tensor]:
    """How hashes of a tensor compare with the last tied entry that is inside: of tensors whose
    entries hash alike, those first by name come first."""
    return less_equal if name <= tie.name else less


def split_ties(
    members: Sequence[Tied],
    ranks: Mapping[int, set[int]],
    counts: Mapping[int, int],
    each: Each,
) -> dict[tuple[int, int], Tie]:
    """For each group of tied entries and each rank in it, the entry at that rank.

    Hashes are uniform, so a rank lies close to its share of all 64-bit numbers: one pass gathers
    what lies near, and counts what lies below. A rank that is not near is looked for further out.
    """
    found: dict[tuple[int, int], Tie] = {}
    wanted = {(group, rank) for group in ranks for rank in ranks[group]}
    sigmas, scratch = SIGMAS, Scratch()
    while wanted:
        windows = [_Window(g, r, *hash_window(r, counts[g], sigmas)) for g, r in sorted(wanted)]
        near = {(window.group, window.rank): Near() for window in windows}
        for part in each(functools.partial(_look, windows=windows, scratch=scratch), members):
            for key, some in part.items():
                near[key].add(some)
        found |= {key: tie for key, some in near.items() if (tie := some.at(key[1])) is not None}
        wanted -= found.keys()
        sigmas *= 16
    return found


class _Window(NamedTuple):
    """Where, among the hashes of a group, a rank is looked for."""

    group: int
    rank: int
    low: int
    high: int
    """Both inclusive."""


def hash_window(rank: int, count: int, sigmas: float) -> tuple[int, int]:
    """The hashes around a rank's share, so many standard errors to both sides."""
    share = (rank + 0.5) / count
    reach = (sigmas * math.sqrt(count * share * (1 - share)) + sigmas) / count
    low, high = (round((place - 0.5) * 2.0**64) for place in (share - reach, share + reach))
    return max(low, -(1 << 63)), min(high, (1 << 63) - 1)


class Near:
    """What a pass found of a window: how many hashes lie below it, and those inside."""

    def __init__(self) -> None:
        self.below = 0
        self.inside: list[tuple[str, Tensor]] = []

    def add(self, other: Near) -> None:
        """Join what another part found."""
        self.below += other.below
        self.inside += other.inside

    def at(self, rank: int) -> Tie | None:
        """The entry at a rank of the group, in the order of (hash, name); None if it is not here.

        Entries of one tensor never share a hash.
        """
        if not self.inside:
            return None
        hashes = np.concatenate([part.numpy() for _, part in self.inside])
        place = rank - self.below
        if not 0 <= place < len(hashes):
            return None
        value = int(np.partition(hashes, place)[place])
        owners = sorted(name for name, part in self.inside if (part.numpy() == value).any())
        return Tie(value, owners[place - int(np.count_nonzero(hashes < value))])


def _look(part: Tied, *, windows: list[_Window], scratch: Scratch) -> dict[tuple[int, int], Near]:
    """What one part has for every window."""
    near = {(window.group, window.rank): Near() for window in windows}
    for group, name, hashes in part():
        under = scratch.get("under", torch.bool, hashes.numel(), hashes.device)
        within = scratch.get("within", torch.bool, hashes.numel(), hashes.device)
        for window in windows:
            if window.group != group:
                continue
            less(hashes, window.low, out=under)
            less_equal(hashes, window.high, out=within)
            kept = take(hashes, within.logical_xor_(under))
            some = near[window.group, window.rank]
            some.below += count_true(under)
            if kept.numel():
                some.inside.append((name, kept.cpu()))
    return near
