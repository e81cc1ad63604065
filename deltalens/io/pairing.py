"""Which tensors of a fine-tune and its base are compared, and which stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from deltalens.io.checkpoint import Checkpoint
from deltalens.io.header import TensorEntry
from deltalens.names import Scope, unit_of

__all__ = ["Pairing", "TensorPair", "Unit"]


class TensorPair(NamedTuple):
    """One tensor that takes part: as the fine-tune stores it, and where its base lies."""

    ft: TensorEntry
    base: TensorEntry
    entries: int
    """How many are compared and ranked: the flat prefix that both have. All of them, unless the
    embedding was resized: rows that only the fine-tune has stay, rows that only the base has are
    not in `base`."""

    @property
    def name(self) -> str:
        """The fine-tune's stored name."""
        return self.ft.name


@dataclass(frozen=True)
class Unit:
    """Tensors that are ranked together."""

    name: str
    pairs: tuple[TensorPair, ...]

    @functools.cached_property
    def entries(self) -> int:
        """How many entries are ranked."""
        return sum(pair.entries for pair in self.pairs)


@dataclass(frozen=True)
class Pairing:
    """What takes part, and what does not and why."""

    ft: Checkpoint
    base: Checkpoint
    pairs: tuple[TensorPair, ...]
    kept: dict[str, str] = field(default_factory=dict)
    """Tensors of the fine-tune that stay as they are: name -> why."""
    notes: tuple[str, ...] = ()
    """What a reader of the result should know: enlarged, tied, ignored, renamed tensors."""
    copies: dict[str, str] = field(default_factory=dict)
    """Tied tensors that the fine-tune stores twice: name -> the name under which it counts."""
    ft_only: tuple[TensorEntry, ...] = ()
    """What has no counterpart in the base, chosen or not: it stays as the fine-tune has it."""
    base_only: tuple[TensorEntry, ...] = ()
    """What has no counterpart in the fine-tune, chosen or not."""

    @property
    def unpaired(self) -> str:
        """What is on one side only, in words; empty where putting all of it back gives the base."""
        sides = (("fine-tune", self.ft_only), ("base", self.base_only))
        return " and ".join(_counted(held, side) for side, held in sides if held)

    @functools.cached_property
    def entries(self) -> int:
        """How many entries take part."""
        return sum(pair.entries for pair in self.pairs)

    def units(self, scope: Scope) -> tuple[Unit, ...]:
        """The pairs, grouped by what is ranked together.

        `layer` is one transformer block; a tensor outside the blocks is a unit of its own.
        """
        groups: dict[str, list[TensorPair]] = {}
        for one in self.pairs:
            groups.setdefault(unit_of(one.name, scope), []).append(one)
        return tuple(Unit(name, tuple(pairs)) for name, pairs in groups.items())


def _counted(entries: Collection[TensorEntry], side: str) -> str:
    total = sum(entry.numel for entry in entries)
    what = "tensor is" if len(entries) == 1 else "tensors are"
    return f"{len(entries)} {what} in the {side} only ({total:,} entries)"
