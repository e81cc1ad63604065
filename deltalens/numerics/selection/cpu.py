"""Tensors in memory on the CPU: compiled loops, each tensor in one call, on all cores.

The counts name, for every rank, the bin in which its threshold lies. The visit marks, or leaves,
what lies above that bin and gathers what lies inside: those few settle the exact threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from deltalens.errors import DeltaLensError, errors_from
from deltalens.numerics.bits import PREFIXES, infinity_bits, integer_of
from deltalens.numerics.masks import PackedMask, compare
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.backend import Units
from deltalens.numerics.selection.counts import Counts, prefix_floors
from deltalens.numerics.selection.keys import Entries, prefix_shift
from deltalens.numerics.selection.prefix import Boundary
from deltalens.numerics.selection.windows import (
    Candidates,
    Observed,
    RankSearch,
    Window,
    searches_from_counts,
)
from deltalens.numerics.sizes import SIZES
from deltalens.numerics.workers import Mapper, map_balanced, serial_map

__all__ = ["OnCpu", "compile_loops", "count"]

_MOST = 1 << 32
"""Entries of a tensor must be fewer: they are counted in 32 bits."""
T = TypeVar("T")


def _integers(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.view(integer_of(values.dtype)).numpy()
    return found


def _pieces(tensor: Entries, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
    """(start, entries): all at once, or divided piece by piece in reused memory."""
    whole = max(1, tensor.values.numel())
    return tensor.pieces(whole if tensor.scale is None else SIZES.chunk, scratch)


def count(tensor: Entries, scratch: Scratch) -> Counts:
    """The magnitudes of a tensor, counted and added up in one visit.

    Args:
        tensor: the tensor.
        scratch: reused memory.
    """
    from deltalens.numerics.selection import loops

    values = tensor.values
    if values.numel() >= _MOST:
        raise DeltaLensError(f"a tensor of {values.numel():,} entries: 2^32 are too many")
    tables = scratch.zeros("counted", torch.int32, 2 * PREFIXES).view(2, PREFIXES).numpy()
    tables = tables.view(np.uint32)
    total, squares, zeros, least, greatest = 0.0, 0.0, 0, PREFIXES, 0
    for _, piece in _pieces(tensor, scratch):
        bits = _integers(piece)
        numbers = bits if bits.itemsize == 2 else piece.numpy()
        first, last = _whole_words(bits)
        words = bits[first:last].view(np.uint64)
        parts = [loops.scan(words, bits[first:last], numbers[first:last], tables)]
        parts += [
            _count_one(bits[place], numbers[place], tables)
            for place in (*range(first), *range(last, bits.size))
        ]
        total += sum(part[0] for part in parts)
        squares += sum(part[1] for part in parts)
        zeros += sum(part[2] for part in parts)
        least = min(least, *(part[3] for part in parts))
        greatest = max(greatest, *(part[4] for part in parts))
    first_prefix = least + 1 if greatest else 1
    counts = np.empty(greatest + 2 - first_prefix if greatest else 1, dtype=np.int64)
    counts[0] = loops.collect(tables, first_prefix, counts[1:])
    found = Counts(values.dtype, torch.from_numpy(counts), first_prefix)
    found.zeros, found.magnitude_sum, found.square_sum = zeros, total, squares
    _count_special(found, values)
    return found


def _whole_words(bits: np.ndarray) -> tuple[int, int]:
    """First and last entry of what can be read in aligned words of 64 bits."""
    per_word = 8 // bits.itemsize
    first = min(bits.size, -bits.ctypes.data % 8 // bits.itemsize)
    return first, first + (bits.size - first) // per_word * per_word


def _count_one(
    bits: np.integer[Any], number: np.floating[Any], tables: np.ndarray
) -> tuple[float, float, int, int, int]:
    """`loops.scan`, for an entry beside the whole words."""
    prefix = int(bits) >> (8 * bits.itemsize - 16) & (PREFIXES - 1)
    tables[0, prefix] += 1
    size = abs(float(number)) if bits.itemsize > 2 else 0.0
    zero = bits.itemsize > 2 and size == 0
    return size, size * size, zero, prefix - 1 if prefix else PREFIXES, prefix


def _count_special(found: Counts, values: Tensor) -> None:
    """Infinities and NaNs; and what follows from the counts where prefixes are single numbers."""
    infinity, counts = infinity_bits(found.dtype) >> prefix_shift(found.dtype), found.counts.numpy()
    broken = found.first + counts.size - 1 > infinity
    if found.coarse:
        if broken:
            found.nans = int(values.isnan().sum())
            found.infinities = int(values.isinf().sum())
        return
    found.zeros = int(counts[0])
    if broken:
        found.infinities = found.count_of(infinity)
        found.nans = found.count_from(infinity + 1)
    occupied = counts[1:].nonzero()[0]
    some, sizes = counts[1:][occupied], prefix_floors(found.dtype)[occupied + found.first]
    found.magnitude_sum, found.square_sum = float(some @ sizes), float(some @ (sizes * sizes))


class OnCpu:
    """See `Backend`.

    Args:
        mapper: how to visit the tensors.
        scratch: reused memory.
        fractions: where they are given, a tensor's `Counts.numbers` are made as soon as it is
            counted, while other cores count.
    """

    def __init__(self, mapper: Mapper, scratch: Scratch, fractions: Sequence[float] = ()) -> None:
        self._mapper, self._scratch, self._fractions = mapper, scratch, fractions

    def count(self, units: Units) -> list[list[Counts]]:
        """See `Backend`."""

        def work(unit: int, place: int) -> Counts:
            found = count(units[unit][place], self._scratch)
            if self._fractions:
                found.stats(self._fractions)
            return found

        return self._over(units, work)

    def visit(
        self,
        units: Units,
        counts: Sequence[Sequence[Counts]],
        ranks: Sequence[Sequence[int]],
        kept: Sequence[Sequence[PackedMask]] | None,
    ) -> _Visit:
        """See `Backend`."""
        kind = _Marking if kept is None else _Shrinking
        if kept is None:
            masks: list[list[list[PackedMask]]] = [[[] for _ in unit] for unit in units]
        else:
            masks = [[[mask] for mask in unit] for unit in kept]
        return kind(units, counts, ranks, masks, self._over, self._scratch)

    def _over(self, units: Units, work: Callable[[int, int], T]) -> list[list[T]]:
        """What is done with each tensor, given as the numbers of its unit and of its place there;
        tensor by tensor, whatever is ranked together."""
        tasks = [(unit, place) for unit, some in enumerate(units) for place in range(len(some))]
        found = iter(
            map_balanced(
                self._mapper,
                lambda task: work(*task),
                tasks,
                lambda task: units[task[0]][task[1]].values.numel(),
            )
        )
        return [[next(found) for _ in some] for some in units]


@dataclass
class _Visit:
    """See `Visit`: of each unit, at each of its ranks, the bin that holds the entry."""

    units: Units
    counts: Sequence[Sequence[Counts]]
    ranks: Sequence[Sequence[int]]
    masks: list[list[list[PackedMask]]]
    over_tensors: Callable[[Units, Callable[[int, int], Any]], list[list[Any]]]
    scratch: Scratch
    _seen: list[list[Observed]] = field(default_factory=list)

    def spec(self) -> list[RankSearch]:
        """See `Visit`."""
        return [
            one
            for unit, (counts, ranks) in enumerate(zip(self.counts, self.ranks, strict=True))
            for one in searches_from_counts(Counts.combined(counts), ranks, unit)
        ]

    def __call__(self, windows: Sequence[Window]) -> list[Observed]:
        """See `Visit`."""
        of: list[list[Window]] = [[] for _ in self.units]
        for window in windows:
            of[window.of].append(window)
        found = self.over_tensors(
            self.units, lambda unit, place: self._visit(unit, place, of[unit])
        )
        self._seen = [
            [Observed(0, list(inside)) for inside in zip(*tensors, strict=True)]
            for tensors in found
        ]
        return [seen for unit in self._seen for seen in unit]

    def _visit(self, unit: int, place: int, windows: Sequence[Window]) -> list[Candidates]:
        raise NotImplementedError

    def finish(self, found: Sequence[Boundary]) -> list[list[int | Tensor]]:
        """See `Visit`."""
        bits = iter(found)
        return [
            [self._settle(unit, rank, next(bits).below) for rank in range(len(ranks))]
            for unit, ranks in enumerate(self.ranks)
        ]

    def _settle(self, unit: int, rank: int, least: int) -> int:
        from deltalens.numerics import compiled_masks

        for place, one in enumerate(self._seen[unit][rank].inside):
            words = self.masks[unit][place][rank].words
            compiled_masks.set_bits(words, one.places, one.keys, least)
        return least


class _Marking(_Visit):
    """A mask at every rank, of the entries that reach its threshold: ties stay (GMT, Eq. 3)."""

    def _visit(self, unit: int, place: int, windows: Sequence[Window]) -> list[Candidates]:
        from deltalens.numerics.selection import loops

        tensor, counts = self.units[unit][place], self.counts[unit][place]
        self.masks[unit][place], words = PackedMask.several(len(windows), tensor.values.numel())
        integer, shift = np.dtype(f"i{tensor.values.dtype.itemsize}"), prefix_shift(counts.dtype)
        low, high = (np.array([one[end] for one in windows], dtype=integer) for end in (0, 1))
        room = [_room(counts, window, shift) for window in windows]
        starts = np.cumsum([0, *room])
        filled = starts[:-1].copy()
        places, inside = np.empty(starts[-1], np.int64), np.empty(starts[-1], integer)
        clear = np.array([np.iinfo(integer).max], dtype=integer)
        for start, piece in _pieces(tensor, self.scratch):
            before, part = filled.copy(), words[:, start // 32 :]
            loops.mark(_integers(piece), clear, low, high, part, filled, places, inside)
            if start:
                for first, last in zip(before, filled, strict=True):
                    places[first:last] += start
        return [
            Candidates(tensor.name, inside[a:b], places[a:b], None)
            for a, b in zip(starts, filled, strict=False)
        ]


def _room(counts: Counts, window: Window, shift: int) -> int:
    """For what lies inside; a loop writes one entry further before it knows whether that is."""
    return counts.count_of(window.low >> shift) + 1 if window.low < window.high else 1


class _Shrinking(_Visit):
    """What is below the threshold becomes zero, in place; all else is made true in a mask."""

    def _visit(self, unit: int, place: int, windows: Sequence[Window]) -> list[Candidates]:
        from deltalens.numerics.selection import loops

        tensor, counts = self.units[unit][place], self.counts[unit][place]
        (window,), (kept,), values = windows, self.masks[unit][place], tensor.values
        integer = np.dtype(f"i{values.dtype.itemsize}")
        room = _room(counts, window, prefix_shift(counts.dtype)) if window.high else 0
        places, inside = np.empty(room, np.int64), np.empty(room, integer)
        if not window.high:
            kept.fill()
            return [Candidates(tensor.name, inside, places, None)]
        filled, bounds = np.zeros(1, np.int64), np.array(window[:2], dtype=integer)
        clear, words = np.array([np.iinfo(integer).max], dtype=integer), kept.words.view(np.uint32)
        for start, piece in _pieces(tensor, self.scratch):
            before, bits = int(filled[0]), _integers(piece)
            loops.shrink(bits, clear, bounds, words[start // 32 :], filled, places, inside)
            places[before : filled[0]] += start
            if tensor.scale is not None:
                target = _integers(values)[start : start + piece.numel()]
                loops.clear_like(target, bits, clear)
        return [Candidates(tensor.name, inside[: filled[0]], places[: filled[0]], None)]

    def _settle(self, unit: int, rank: int, least: int) -> int:
        from deltalens.numerics.selection import loops

        for tensor, one in zip(self.units[unit], self._seen[unit][rank].inside, strict=True):
            loops.clear_at(_integers(tensor.values), one.places, one.keys, least)
        return super()._settle(unit, rank, least)


def compile_loops(dtype: torch.dtype) -> None:
    """Compile or load the loops for a dtype now, so that no step has to wait for it.

    Raises:
        DeltaLensError: numba cannot compile them.
    """
    with errors_from("numba", f"the loops for {dtype} cannot be compiled"):
        backend, units = OnCpu(serial_map, Scratch()), [[Entries("", torch.zeros(64, dtype=dtype))]]
        counts, mask = backend.count(units), PackedMask(64)
        counts[0][0].stats([0.5])
        compare(mask, [None] * 3, mask)
        window = Window(0, 1 << prefix_shift(dtype))
        for kept in (None, [[mask]]):
            visit = backend.visit(units, counts, [[0]], kept)
            visit([window])
            visit.finish([Boundary(0)])
