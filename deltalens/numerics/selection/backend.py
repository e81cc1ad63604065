"""What is done with tensors in memory, wherever they are: count, mark the top, or zero the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.counts import Counts
from deltalens.numerics.selection.keys import Entries

__all__ = ["Backend", "Units", "Visit"]

Units = Sequence[Sequence[Entries]]
"""Tensors, in units that are ranked together: of one dtype and device."""


class Visit(Protocol):
    """One way through units of tensors: what is looked for in them, and what a look does."""

    masks: list[list[list[PackedMask]]]
    """Of each unit and tensor, at each rank."""

    def spec(self) -> Sequence[Any]:
        """What is looked for (`find.Asked`), of each unit in turn."""
        ...

    def __call__(self, windows: Sequence[Any], /) -> Sequence[Any]:
        """Go through all entries once: what was seen of each window."""
        ...

    def finish(self, found: Sequence[Any]) -> Sequence[Sequence[int | Tensor]]:
        """Do with the entries near the boundaries what was done with all others.

        Returns:
            For each unit the magnitude bits of its boundaries: on an accelerator as tensors, which
            nobody has waited for.
        """
        ...


class Backend(Protocol):
    """Where the work is done."""

    def count(self, units: Units) -> list[list[Counts]]:
        """The magnitudes of each tensor, counted: of the whole one, where it is sharded."""
        ...

    def visit(
        self,
        units: Units,
        counts: Sequence[Sequence[Counts]],
        ranks: Sequence[Sequence[int]],
        kept: Sequence[Sequence[PackedMask]] | None,
    ) -> Visit:
        """For what `find.rank_units` does."""
        ...
