"""The results of a search: where a prefix of the order ends, and which entries a drop takes.

Entries are ordered by the key (magnitude bits, hash, tensor name, flat index). The hash (see
`hashing`) breaks ties without favoring any tensor or row, so a prefix of k entries always has
exactly k entries, and prefixes are nested. The key does not depend on how the data is chunked or
sharded, in which order it is visited, or where it is computed. The order *by hash alone* is a
random order.
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
"""Which entries a drop takes first: the largest |delta|, the smallest, or random ones."""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Tie(NamedTuple):
    """The last entry of a prefix among those that tie."""

    hash: int
    name: str


@dataclass(frozen=True)
class Boundary:
    """Where a prefix of the order ends."""

    below: int
    """Entries with smaller keys (usually magnitude bits) are all inside."""
    tie: Tie | None = None
    """Of the entries with the key `below`, those up to this one are inside; None: none of them."""


NOTHING = Boundary(0)
EVERYTHING = Boundary((1 << 63) - 1)


def tie_comparison(tie: Tie, name: str) -> Callable[..., Tensor]:
    """Return the comparison between a tensor's hashes and that of the last tied entry inside.

    Among tensors whose entries share a hash, those first by name come first.

    Args:
        tie: the last tied entry inside.
        name: the tensor's name.

    Returns:
        `less_equal` or `less`, to be called with hashes, the tie's hash and `out`.
    """
    return less_equal if name <= tie.name else less


def drop_count(rate: Fraction, total: int) -> int:
    """Compute round(rate * total), half to even, of the exact product.

    Args:
        rate: an exact rate from 0 to 1.
        total: the number of entries.

    Returns:
        The number of entries to drop.
    """
    return round(rate * total)


def prefix_size(strategy: Strategy, rate: Fraction, total: int, unchanged: int = 0) -> int:
    """Compute the size of the prefix whose boundary a drop needs.

    `trivial` and `random` drop a prefix; `salient` drops what lies beyond one. If only changed
    entries count, the unchanged ones (the smallest by magnitude) are stepped over.

    Args:
        strategy: which entries go first.
        rate: the fraction to drop, exact.
        total: the number of entries of the unit.
        unchanged: the number of entries to step over.

    Returns:
        The number of entries of the prefix.
    """
    dropped = drop_count(rate, total - unchanged)
    if strategy == "salient":
        return total - dropped
    return unchanged + dropped if strategy == "trivial" else dropped


@dataclass(frozen=True)
class Selection:
    """The entries of one unit that a drop reverts to the base.

    There is one object per unit, strategy, rate and seed. It holds no tensor, and can be applied to
    any chunk of the unit, in any order.
    """

    strategy: Strategy
    boundary: Boundary
    seed: int
    changed_only: bool = False
    """Whether entries whose delta is exactly zero are never selected."""
    drawn: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    """The masks of a random drop, if `draw` has made them already."""

    @property
    def empty(self) -> bool:
        """Whether no entry at all is selected."""
        return self.boundary == (EVERYTHING if self.strategy == "salient" else NOTHING)

    @property
    def ranks(self) -> bool:
        """Whether the selection depends on the deltas' values, rather than only on their number."""
        return self.strategy != "random" or self.changed_only

    def mask(self, name: str, start: int, delta: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Compute which entries of a chunk are selected.

        Args:
            name: the tensor's name, as it was ranked.
            start: flat index of the chunk's first entry.
            delta: the chunk's entries, 1-D and contiguous.
            scratch: memory for the mask, until the next call with the same scratch.

        Returns:
            bool, 1-D, on the chunk's device.
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
        compare, offset, key = tie_comparison(tie, name), 0, name_key(self.seed, name)
        stop = start + inside.numel()
        for hashes in hashed_range(start, stop, key, inside.device, scratch):
            compare(hashes, tie.hash, out=inside[offset : offset + hashes.numel()])
            offset += hashes.numel()

    def _tied_inside(self, tie: Tie, name: str, indices: Tensor) -> Tensor:
        hashes = index_hash(indices, name_key(self.seed, name))
        return tie_comparison(tie, name)(
            hashes, tie.hash, out=torch.empty_like(hashes, dtype=torch.bool)
        )
