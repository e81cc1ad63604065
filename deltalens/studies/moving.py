"""A plane (or line) in weight space; any of its points can be written into a live model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import Mapper
from deltalens.studies.slots import Slot
from deltalens.studies.weights import Weights, runs

__all__ = ["Direction", "Plane"]


class Direction(Protocol):
    """A direction in weight space."""

    def fill(self, slot: Slot, out: Tensor) -> None:
        """Compute the direction's entries for one slot.

        Args:
            slot: the tensor.
            out: written to; 1-D, of the slot's size and `work` dtype, on its device.
        """
        ...


class Plane:
    """Writes origin + a d1 + b d2 into a live model. Every point is computed from the origin, so
    that no error accumulates.

    origin + a d1 is computed once per row (a), in fp32, or fp64 for fp64 parameters. Each point of
    the row takes one further pass, which writes origin + a d1 + b d2, rounded once to the model's
    dtype. A line is a single row: the origin itself.

    Memory: a row, and the directions if they are held; each has the model's size in fp32.

    Args:
        slots: the tensors that are written to.
        origin: the weights at (0, 0); read again for every row.
        directions: one or two.
        keep: hold the directions in memory; if False, they are computed again for every row and
            point, with the same bits.
        threads: opens a pool that visits the slots.
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
        self._row_at: float | None = None
        self._scratch = Scratch()
        self._kept: dict[int, dict[str, Tensor]] = {}
        for direction in directions if keep else ():
            self._kept[id(direction)] = self._computed(direction)
        self._sums = self._plain_sums()

    def write(self, a: float, b: float) -> None:
        """Write a point.

        Args:
            a, b: its coordinates; on a line, b is not used.
        """
        outer, inner = (0.0, a) if self._outer is None else (a, b)
        if outer != self._row_at:
            self._row_at = None
            self._each(lambda slot: self._compute_row(slot, outer))
            self._row_at = outer
        if self._sums:
            for row, direction, live in self._sums:
                torch.add(row, direction, alpha=inner, out=live)
        else:
            self._each(lambda slot: self._write(slot, inner))

    def _computed(self, direction: Direction) -> dict[str, Tensor]:
        """A direction as a whole: slot name -> entries."""
        tensors = {slot.name: _like(slot) for slot in self._slots}
        self._each(lambda slot: direction.fill(slot, tensors[slot.name]))
        return tensors

    def _plain_sums(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Row, direction and live memory of every tensor, if all points are plain sums of the
        first two: one operation per tensor, which torch parallelizes. Otherwise empty."""
        kept = self._kept.get(id(self._inner))
        sums = [
            (self._row[slot.name], kept[slot.name], slot.flat)
            for slot in self._slots
            if kept is not None and slot.flat is not None and slot.view.dtype == slot.work
        ]
        return sums if len(sums) == len(self._slots) else []

    def _compute_row(self, slot: Slot, outer: float) -> None:
        row = self._row[slot.name]
        self._origin.read(slot.name, 0, row)
        if self._outer is not None and outer:
            row.add_(self._entries(self._outer, slot), alpha=outer)

    def _write(self, slot: Slot, inner: float) -> None:
        row, direction, flat = self._row[slot.name], self._entries(self._inner, slot), slot.flat
        if flat is None:
            slot.write(0, torch.add(row, direction, alpha=inner))
        elif flat.dtype == row.dtype:
            torch.add(row, direction, alpha=inner, out=flat)
        else:
            for start, stop in runs(0, slot.size):
                wide = self._scratch.get("wide", row.dtype, stop - start, row.device)
                torch.add(row[start:stop], direction[start:stop], alpha=inner, out=wide)
                flat[start:stop].copy_(wide)

    def _entries(self, direction: Direction, slot: Slot) -> Tensor:
        if id(direction) in self._kept:
            return self._kept[id(direction)][slot.name]
        entries = self._scratch.get("direction", slot.work, slot.size, slot.view.device)
        direction.fill(slot, entries)
        return entries

    def _each(self, do: Callable[[Slot], None]) -> None:
        with self._threads() as mapper:
            for _ in mapper(do, self._slots):
                pass


def _like(slot: Slot) -> Tensor:
    return torch.empty(slot.size, dtype=slot.work, device=slot.view.device)
