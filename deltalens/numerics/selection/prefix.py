"""Which entries of a unit a drop takes, and taking them chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from deltalens.numerics.bits import cast_once, integer_of, magnitude_bits
from deltalens.numerics.hashing import hashed_range, index_hash, name_key
from deltalens.numerics.kernels import equal, less, select, take, where_true
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.find import EVERYTHING, NOTHING, Boundary
from deltalens.numerics.selection.windows import Tie, up_to

__all__ = ["STRATEGIES", "Selection", "Strategy", "count_at", "prefix_size", "put_back"]

Strategy = Literal["salient", "trivial", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def count_at(rate: Fraction, total: int) -> int:
    """round(rate * total), half to even, of the exact product."""
    return round(rate * total)


def prefix_size(strategy: Strategy, rate: Fraction, total: int, unchanged: int = 0) -> int:
    """How long the prefix is whose boundary a drop needs.

    `trivial` and `random` drop a prefix; `salient` drops what lies beyond one. Where only changed
    entries count, the `unchanged` ones (the very first by magnitude) are stepped over.
    """
    dropped = count_at(rate, total - unchanged)
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
    """The masks of a random drop, where they have been made already (`drawing.draw`)."""

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
        compare, at, key = up_to(tie, name), 0, name_key(self.seed, name)
        stop = start + inside.numel()
        for hashes in hashed_range(start, stop, key, inside.device, scratch):
            compare(hashes, tie.hash, out=inside[at : at + hashes.numel()])
            at += hashes.numel()

    def _tied_inside(self, tie: Tie, name: str, indices: Tensor) -> Tensor:
        hashes = index_hash(indices, name_key(self.seed, name))
        return up_to(tie, name)(hashes, tie.hash, out=torch.empty_like(hashes, dtype=torch.bool))


def put_back(
    ft: Tensor,
    base: Tensor,
    selected: Tensor,
    *,
    rescale: Fraction | None = None,
    out: Tensor | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """The selected entries as in the base, the rest as in the fine-tune (bit for bit).

    Args:
        ft, base: chunks of the same shape; the base is cast once to the fine-tune's dtype.
        selected: bool mask of that shape.
        rescale: the drop rate r, if kept deltas are to be divided by 1 - r (DARE, Yu et al. 2024,
            Eq. 2): then a kept entry is base + delta / (1 - r), computed in fp64, rounded once.
        out: where to write, of the fine-tune's dtype; may be `ft` itself.
        scratch: for what is made on the way.
    """
    kept = ft
    if rescale is not None and 0 < rescale < 1:
        wide = base.double()
        stretched = wide.add(ft.double() - wide, alpha=float(1 / (1 - rescale)))
        kept = cast_once(stretched, ft.dtype)
    if out is None:
        out = torch.empty_like(ft)
    return select(selected, cast_once(base, ft.dtype), kept, out, scratch or Scratch())
