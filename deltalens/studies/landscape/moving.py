"""A live model that is put on one point of a line or plane after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import in_order, one_thread, workers
from deltalens.studies.landscape.directions import Direction
from deltalens.studies.landscape.grid import Point
from deltalens.studies.places import Slot
from deltalens.studies.weights import CHUNK, Weights

__all__ = ["MovedModel"]

_OnSlot = Callable[[Slot], None]

_FEWEST = 1 << 22
"""Below so many entries one thread is as quick as several that have to be started."""


class MovedModel:
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

    Memory: a row, and the directions if they are held: for each the model's size in fp32.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        origin: Weights,
        directions: Sequence[Direction],
        *,
        keep: bool = True,
    ) -> None:
        self._slots, self._origin = list(slots), origin
        self._outer = directions[0] if len(directions) > 1 else None
        self._inner = directions[-1]
        self._row = {slot.name: _like(slot) for slot in self._slots}
        self._at: float | None = None
        self._scratch = Scratch()
        self._kept: dict[int, dict[str, Tensor]] = {}
        for direction in directions if keep else ():
            self._kept[id(direction)] = self._held(direction)
        self._plain = self._plain_sums()

    def move(self, point: Point) -> None:
        """Put the model on a point."""
        outer = point.a if self._outer is not None else 0.0
        if outer != self._at:
            self._at = None
            self._each(lambda slot: self._form_row(slot, outer))
            self._at = outer
        inner = point.b if self._outer is not None else point.a
        with torch.no_grad():
            if self._plain:
                for row, direction, live in self._plain:
                    torch.add(row, direction, alpha=inner, out=live)
            else:
                self._each(lambda slot: self._write(slot, inner))

    def restore(self) -> None:
        """Give the model the origin's bits back."""
        with torch.no_grad():
            for slot in self._slots:
                if slot.view.is_contiguous():
                    self._origin.read(slot.name, 0, slot.view.view(-1))
                else:
                    whole = torch.empty(slot.size, dtype=slot.view.dtype)
                    self._origin.read(slot.name, 0, whole)
                    slot.view.copy_(whole.view(slot.view.shape))

    def _held(self, direction: Direction) -> dict[str, Tensor]:
        held = {slot.name: _like(slot) for slot in self._slots}
        self._each(lambda slot: direction.fill(slot, held[slot.name]))
        return held

    def _plain_sums(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Row, direction and live memory of every tensor, where a point is no more than their sum:
        one operation each, which torch spreads over its own threads. Empty where it is more."""
        kept = self._kept.get(id(self._inner))
        plain = all(one.view.dtype == one.work and one.view.is_contiguous() for one in self._slots)
        if kept is None or not plain:
            return []
        return [(self._row[one.name], kept[one.name], one.view.view(-1)) for one in self._slots]

    def _form_row(self, slot: Slot, outer: float) -> None:
        row = self._row[slot.name]
        self._origin.read(slot.name, 0, row)
        if self._outer is not None and outer:
            row.add_(self._part(self._outer, slot), alpha=outer)

    def _write(self, slot: Slot, inner: float) -> None:
        row, direction, view = self._row[slot.name], self._part(self._inner, slot), slot.view
        if not view.is_contiguous():
            view.copy_(torch.add(row, direction, alpha=inner).view(view.shape))
        elif view.dtype == row.dtype:
            torch.add(row, direction, alpha=inner, out=view.view(-1))
        else:
            flat = view.view(-1)
            for start in range(0, slot.size, CHUNK):
                part = row[start : start + CHUNK]
                wide = self._scratch.get("wide", part.dtype, part.numel(), part.device)
                torch.add(part, direction[start : start + CHUNK], alpha=inner, out=wide)
                flat[start : start + CHUNK].copy_(wide)

    def _part(self, direction: Direction, slot: Slot) -> Tensor:
        if id(direction) in self._kept:
            return self._kept[id(direction)][slot.name]
        formed = self._scratch.get("direction", slot.work, slot.size, slot.view.device)
        direction.fill(slot, formed)
        return formed

    def _each(self, do: _OnSlot) -> None:
        """On all cores; always on one thread each, so that no sum depends on their number."""
        device = self._slots[0].view.device
        small = sum(slot.size for slot in self._slots) < _FEWEST
        with torch.no_grad(), one_thread() if small else workers(device) as each:
            for _ in (each or in_order)(do, self._slots):
                pass


def _like(slot: Slot) -> Tensor:
    return torch.empty(slot.size, dtype=slot.work, device=slot.view.device)
