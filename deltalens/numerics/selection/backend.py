"""What a backend does with tensors in memory: count them, mark the largest entries, zero the
rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.counts import Counts
from deltalens.numerics.selection.keys import Entries

__all__ = ["Backend", "Units", "Visit"]

Units = Sequence[Sequence[Entries]]
"""Units of tensors that are ranked together; all of one dtype and device."""


class Visit(Protocol):
    """One pass over units of tensors, with what it looks for and what it does on the way."""

    masks: list[list[list[PackedMask]]]
    """For each unit and tensor: a mask at each rank."""

    def searches(self) -> Sequence[Any]:
        """Return what the pass looks for.

        Returns:
            The searches (`find.Search`), for each unit in turn.
        """
        ...

    def __call__(self, windows: Sequence[Any], /) -> Sequence[Any]:
        """Visit all entries once.

        Args:
            windows: one window per search.

        Returns:
            What was observed in each window.
        """
        ...

    def finish(self, boundaries: Sequence[Any]) -> Sequence[Sequence[int | Tensor]]:
        """Treat the entries near the boundaries like all others.

        Args:
            boundaries: the results of the searches.

        Returns:
            For each unit the magnitude bits of its boundaries; on an accelerator as tensors, which
            have not been waited for.
        """
        ...


class Backend(Protocol):
    """Where the work is done."""

    def count(self, units: Units) -> list[list[Counts]]:
        """Count the magnitudes of each tensor; those of the whole tensor if it is sharded.

        Args:
            units: the tensors.

        Returns:
            Counts, arranged as the tensors are.
        """
        ...

    def visit(
        self,
        units: Units,
        counts: Sequence[Sequence[Counts]],
        ranks: Sequence[Sequence[int]],
        kept: Sequence[Sequence[PackedMask]] | None,
    ) -> Visit:
        """Prepare the pass that `find.rank_units` makes.

        Args:
            units: the tensors.
            counts: what `count` returned for them.
            ranks: for each unit the ranks of its thresholds, 0-based and ascending.
            kept: for each unit and tensor a mask, if what lies below the threshold is to be set to
                zero.

        Returns:
            The pass.
        """
        ...
