"""What a search finds: where a prefix of the order ends, and which entries a drop then takes.

Entries are ordered by the key (magnitude bits, hash, tensor name, flat index). The hash (see
`hashing`) settles ties without favoring any tensor or row, so a prefix of k entries is always
exactly k entries, and prefixes are nested. Nothing in the key depends on how the data is chunked,
sharded, visited or where it is computed. The order *by hash alone* is a random order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from deltalens.numerics.bits import integer_of, magnitude_bits
from deltalens.numerics.hashing import hashed_range, index_hash, name_key
from deltalens.numerics.kernels import equal, less, less_equal, take, where_true
from deltalens.numerics.scratch import Scratch

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "STRATEGIES",
    "Boundary",
    "Selection",
    "Strategy",
    "Tie",
    "drop_count",
    "prefix_size",
    "tie_comparison",
]

Strategy = Literal["salient", "trivial", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Tie(NamedTuple):
    """The last entry, among those that tie, of a prefix."""

    hash: int
    name: str


@dataclass(frozen=True)
class Boundary:
    """Where a prefix of the order ends."""

    below: int
    """Entries with smaller keys (magnitude bits, mostly) are all inside."""
    tie: Tie | None = None
    """Of the entries with the key `below`: inside are those up to this one; None: none."""


NOTHING = Boundary(0)
EVERYTHING = Boundary((1 << 63) - 1)


def tie_comparison(tie: Tie, name: str) -> Callable[..., Tensor]:
    """How hashes of a tensor compare with the last tied entry that is inside: of tensors whose
    entries hash alike, those first by name come first."""
    return less_equal if name <= tie.name else less


def drop_count(rate: Fraction, total: int) -> int:
    """round(rate * total), half to even, of the exact product."""
    return round(rate * total)


def prefix_size(strategy: Strategy, rate: Fraction, total: int, unchanged: int = 0) -> int:
    """How long the prefix is whose boundary a drop needs.

    `trivial` and `random` drop a prefix; `salient` drops what lies beyond one. Where only changed
    entries count, the `unchanged` ones (the very first by magnitude) are stepped over.
    """
    dropped = drop_count(rate, total - unchanged)
    if strategy == "salient":
        return total - dropped
    return unchanged + dropped if strategy == "trivial" else dropped


@dataclass(frozen=True)
class Selection:
    """The entries of one unit that a drop puts back to the base.

    One object per (unit, strategy, rate, seed); it knows no tensor and can be asked about any
    chunk of the unit, in any order.
    """

    strategy: Strategy
    boundary: Boundary
    seed: int
    changed_only: bool = False
    """Entries whose delta is exactly zero are never selected."""
    drawn: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    """The masks of a random drop, where they have been made already (`draw`)."""

    @property
    def empty(self) -> bool:
        """Whether nothing at all is selected."""
        return self.boundary == (EVERYTHING if self.strategy == "salient" else NOTHING)

    @property
    def ranks(self) -> bool:
        """Whether it needs to see the deltas; if not, any tensor tells it how many there are."""
        return self.strategy != "random" or self.changed_only

    def mask(self, name: str, start: int, delta: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Which entries of a chunk are selected: bool, 1-D, on the chunk's device.

        Args:
            name: the tensor's name as it was ranked.
            start: flat index of the chunk's first entry.
            delta: the chunk's entries, 1-D and contiguous.
            scratch: where the mask lies, until the next call with the same one.
        """
        scratch = scratch or Scratch()
        size, device = delta.numel(), delta.device
        inside = scratch.get("inside", torch.bool, size, device)
        if self.strategy == "random":
            self._random(name, start, inside, scratch)
            return inside.logical_and_(delta != 0) if self.changed_only else inside
        bits = scratch.get("bits", integer_of(delta.dtype), size, device)
        magnitude_bits(delta, out=bits)
        less(bits, min(self.boundary.below, torch.iinfo(bits.dtype).max), out=inside)
        if self.boundary.tie is not None:
            equals = scratch.get("equals", torch.bool, size, device)
            tied = where_true(equal(bits, self.boundary.below, out=equals))
            inside[take(tied, self._tied_inside(self.boundary.tie, name, tied + start))] = True
        if self.strategy == "salient":
            inside.logical_not_()
        return inside.logical_and_(bits != 0) if self.changed_only else inside

    def _random(self, name: str, start: int, inside: Tensor, scratch: Scratch) -> None:
        if self.drawn is not None:
            inside.copy_(self.drawn[name][start : start + inside.numel()])
            return
        tie = self.boundary.tie
        if tie is None:
            inside.fill_(self.boundary == EVERYTHING)
            return
        compare, at, key = tie_comparison(tie, name), 0, name_key(self.seed, name)
        stop = start + inside.numel()
        for hashes in hashed_range(start, stop, key, inside.device, scratch):
            compare(hashes, tie.hash, out=inside[at : at + hashes.numel()])
            at += hashes.numel()

    def _tied_inside(self, tie: Tie, name: str, indices: Tensor) -> Tensor:
        hashes = index_hash(indices, name_key(self.seed, name))
        return tie_comparison(tie, name)(
            hashes, tie.hash, out=torch.empty_like(hashes, dtype=torch.bool)
        )
