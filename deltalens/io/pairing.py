"""The result of pairing a fine-tune with its base: which tensors are compared, which are not."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from deltalens.io.checkpoint import Checkpoint
from deltalens.io.escaping import short_path
from deltalens.io.header import TensorEntry
from deltalens.names import Scope, unit_of

__all__ = ["Pairing", "TensorPair", "Unit"]


class TensorPair(NamedTuple):
    """A tensor of the fine-tune and its counterpart in the base."""

    ft: TensorEntry
    base: TensorEntry
    entries: int
    """How many entries are compared and ranked: the flat prefix that both tensors have. These are
    all entries, unless an embedding was resized. Rows that only the fine-tune has stay as they are;
    rows that only the base has are not part of `base`."""

    @property
    def name(self) -> str:
        """The fine-tune's stored name."""
        return self.ft.name


@dataclass(frozen=True)
class Unit:
    """Tensors whose entries are ranked together."""

    name: str
    pairs: tuple[TensorPair, ...]

    @functools.cached_property
    def entries(self) -> int:
        """The number of entries that are ranked."""
        return sum(pair.entries for pair in self.pairs)


@dataclass(frozen=True)
class Pairing:
    """The pairs of tensors of a fine-tune and its base, and what is not paired and why."""

    ft: Checkpoint
    base: Checkpoint
    pairs: tuple[TensorPair, ...]
    kept: dict[str, str] = field(default_factory=dict)
    """Tensors of the fine-tune that stay as they are: name -> reason."""
    notes: tuple[str, ...] = ()
    """What a reader of the result should know: enlarged, tied, ignored or renamed tensors."""
    copies: dict[str, str] = field(default_factory=dict)
    """Tied tensors that the fine-tune stores twice: name -> name of the tensor that is counted."""
    ft_only: tuple[TensorEntry, ...] = ()
    """Tensors without a counterpart in the base, excluded or not: they stay as they are."""
    base_only: tuple[TensorEntry, ...] = ()
    """Tensors without a counterpart in the fine-tune, excluded or not."""

    def __repr__(self) -> str:
        return (
            f"<Pairing of {short_path(self.ft.path, 80)} with {short_path(self.base.path, 80)}: "
            f"{len(self.pairs):,} tensors, "
            f"{self.entries:,} entries; {len(self.ft_only):,} tensors in the fine-tune only, "
            f"{len(self.base_only):,} in the base only>"
        )

    @property
    def unpaired(self) -> str:
        """A phrase that counts the tensors on one side only. Empty if there are none, so that
        reverting every entry results in the base."""
        sides = (("fine-tune", self.ft_only), ("base", self.base_only))
        return " and ".join(_counted(entries, side) for side, entries in sides if entries)

    @functools.cached_property
    def entries(self) -> int:
        """The number of entries that are compared."""
        return sum(pair.entries for pair in self.pairs)

    def units(self, scope: Scope) -> tuple[Unit, ...]:
        """Group the pairs by what is ranked together.

        Args:
            scope: `tensor`, `layer` (a transformer block; a tensor outside the blocks is a unit by
                itself) or `global`.

        Returns:
            The units, in the order of their first tensors.
        """
        groups: dict[str, list[TensorPair]] = {}
        for pair in self.pairs:
            groups.setdefault(unit_of(pair.name, scope), []).append(pair)
        return tuple(Unit(name, tuple(pairs)) for name, pairs in groups.items())


def _counted(entries: Collection[TensorEntry], side: str) -> str:
    total = sum(entry.numel for entry in entries)
    verb = "tensor is" if len(entries) == 1 else "tensors are"
    return f"{len(entries)} {verb} in the {side} only ({total:,} entries)"
