"""A plane (or line) in weight space, any point of which can be written into a live model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import Mapper
from deltalens.studies.places import Slot
from deltalens.studies.weights import Weights, runs

__all__ = ["Direction", "Plane"]


class Direction(Protocol):
    """A direction in weight space."""

    def fill(self, slot: Slot, out: Tensor) -> None:
        """Write its part at a slot: `out` is 1-D, of the slot's work dtype, on its device."""
        ...


class Plane:
    """Writes origin + a d1 + b d2 into a live model, each point anew: nothing accumulates.

    A row's origin + a d1 is formed once, in fp32 (fp64 where the model is); each point of the row
    is one pass more, which writes origin + a d1 + b d2 rounded once to the model's dtype. On a line
    the origin itself is what is formed once.

    Args:
        slots: what is written to.
        origin: the weights at (0, 0); read again for every row.
        directions: one or two.
        keep: hold the directions; or else form each tensor's anew for every row and point. The
            weights are the same to the last bit.
        threads: how to visit the slots, for the time of a block.

    Memory: a row, and the directions if they are held: for each the model's size in fp32.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        origin: Weights,
        directions: Sequence[Direction],
        keep: bool,
        threads: Callable[[], AbstractContextManager[Mapper]],
    ) -> None:
        self._slots, self._origin, self._threads = slots, origin, threads
        self._outer = directions[0] if len(directions) > 1 else None
        self._inner = directions[-1]
        self._row = {slot.name: _like(slot) for slot in slots}
        self._at: float | None = None
        self._scratch = Scratch()
        self._kept: dict[int, dict[str, Tensor]] = {}
        for direction in directions if keep else ():
            self._kept[id(direction)] = self._held(direction)
        self._sums = self._plain_sums()

    def write(self, a: float, b: float) -> None:
        """Write the point (a, b); on a line b is not looked at."""
        outer, inner = (0.0, a) if self._outer is None else (a, b)
        if outer != self._at:
            self._at = None
            self._each(lambda slot: self._form_row(slot, outer))
            self._at = outer
        if self._sums:
            for row, direction, live in self._sums:
                torch.add(row, direction, alpha=inner, out=live)
        else:
            self._each(lambda slot: self._write(slot, inner))

    def _held(self, direction: Direction) -> dict[str, Tensor]:
        held = {slot.name: _like(slot) for slot in self._slots}
        self._each(lambda slot: direction.fill(slot, held[slot.name]))
        return held

    def _plain_sums(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Row, direction and live memory of every tensor, where a point is no more than their sum:
        one operation each, which torch spreads over its own threads. Empty where it is more."""
        kept = self._kept.get(id(self._inner))
        sums = [
            (self._row[one.name], kept[one.name], one.flat)
            for one in self._slots
            if kept is not None and one.flat is not None and one.view.dtype == one.work
        ]
        return sums if len(sums) == len(self._slots) else []

    def _form_row(self, slot: Slot, outer: float) -> None:
        row = self._row[slot.name]
        self._origin.read(slot.name, 0, row)
        if self._outer is not None and outer:
            row.add_(self._part(self._outer, slot), alpha=outer)

    def _write(self, slot: Slot, inner: float) -> None:
        row, direction, flat = self._row[slot.name], self._part(self._inner, slot), slot.flat
        if flat is None:
            slot.write(0, torch.add(row, direction, alpha=inner))
        elif flat.dtype == row.dtype:
            torch.add(row, direction, alpha=inner, out=flat)
        else:
            for start, stop in runs(0, slot.size):
                wide = self._scratch.get("wide", row.dtype, stop - start, row.device)
                torch.add(row[start:stop], direction[start:stop], alpha=inner, out=wide)
                flat[start:stop].copy_(wide)

    def _part(self, direction: Direction, slot: Slot) -> Tensor:
        if id(direction) in self._kept:
            return self._kept[id(direction)][slot.name]
        formed = self._scratch.get("direction", slot.work, slot.size, slot.view.device)
        direction.fill(slot, formed)
        return formed

    def _each(self, do: Callable[[Slot], None]) -> None:
        with self._threads() as mapper:
            for _ in mapper(do, self._slots):
                pass


def _like(slot: Slot) -> Tensor:
    return torch.empty(slot.size, dtype=slot.work, device=slot.view.device)
