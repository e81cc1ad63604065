"""The backend for tensors on the CPU: compiled loops, one call per tensor, on all cores.

The counts name, for every rank, the bin that holds its threshold. A visit marks or keeps what lies
above that bin, and gathers what lies inside; those few entries settle the exact threshold.
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
from deltalens.numerics.selection.searches import RankSearch, searches_from_counts
from deltalens.numerics.selection.windows import Candidates, Observed, Window
from deltalens.numerics.sizes import SIZES
from deltalens.numerics.workers import Mapper, map_balanced, serial_map

__all__ = ["OnCpu", "compile_loops", "count"]

_ENTRY_LIMIT = 1 << 32
"""A tensor must have fewer entries than this: they are counted in 32 bits."""
T = TypeVar("T")


def _integers(values: Tensor) -> np.ndarray:
    view: np.ndarray = values.view(integer_of(values.dtype)).numpy()
    return view


def _pieces(tensor: Entries, scratch: Scratch) -> Iterator[tuple[int, Tensor]]:
    """Pairs of start and entries: all at once, or piece by piece in reused memory if they are to be
    divided by a scale."""
    entries = max(1, tensor.values.numel())
    return tensor.pieces(entries if tensor.scale is None else SIZES.chunk, scratch)


def count(tensor: Entries, scratch: Scratch) -> Counts:
    """Count the magnitudes of a tensor and sum them up, in one visit.

    Args:
        tensor: the tensor.
        scratch: memory that is reused.

    Returns:
        The counts.

    Raises:
        DeltaLensError: the tensor has 2^32 entries or more.
    """
    from deltalens.numerics.selection import loops

    values = tensor.values
    if values.numel() >= _ENTRY_LIMIT:
        raise DeltaLensError(
            f"{tensor.name}: has {values.numel():,} entries; at most 2^32 - 1 can be ranked"
        )
    tables = scratch.zeros("counted", torch.int32, 2 * PREFIXES).view(2, PREFIXES).numpy()
    tables = tables.view(np.uint32)
    total, squares, zeros, least, greatest = 0.0, 0.0, 0, PREFIXES, 0
    for _, piece in _pieces(tensor, scratch):
        bits = _integers(piece)
        numbers = bits if bits.itemsize == 2 else piece.numpy()
        first, last = _whole_words(bits)
        words = bits[first:last].view(np.uint64)
        sums = [loops.scan(words, bits[first:last], numbers[first:last], tables)]
        sums += [
            _count_one(bits[index], numbers[index], tables)
            for index in (*range(first), *range(last, bits.size))
        ]
        total += sum(partial[0] for partial in sums)
        squares += sum(partial[1] for partial in sums)
        zeros += sum(partial[2] for partial in sums)
        least = min(least, *(partial[3] for partial in sums))
        greatest = max(greatest, *(partial[4] for partial in sums))
    first_prefix = least + 1 if greatest else 1
    bin_counts = np.empty(greatest + 2 - first_prefix if greatest else 1, dtype=np.int64)
    bin_counts[0] = loops.collect(tables, first_prefix, bin_counts[1:])
    result = Counts(values.dtype, torch.from_numpy(bin_counts), first_prefix)
    result.zeros, result.magnitude_sum, result.square_sum = zeros, total, squares
    _count_special(result, values)
    return result


def _whole_words(bits: np.ndarray) -> tuple[int, int]:
    """The first and last index of the entries that can be read as aligned 64-bit words."""
    per_word = 8 // bits.itemsize
    first = min(bits.size, -bits.ctypes.data % 8 // bits.itemsize)
    return first, first + (bits.size - first) // per_word * per_word


def _count_one(
    bits: np.integer[Any], value: np.floating[Any], tables: np.ndarray
) -> tuple[float, float, int, int, int]:
    """`loops.scan` for an entry outside the aligned words."""
    prefix = int(bits) >> (8 * bits.itemsize - 16) & (PREFIXES - 1)
    tables[0, prefix] += 1
    magnitude = abs(float(value)) if bits.itemsize > 2 else 0.0
    is_zero = bits.itemsize > 2 and magnitude == 0
    return magnitude, magnitude * magnitude, is_zero, prefix - 1 if prefix else PREFIXES, prefix


def _count_special(counts: Counts, values: Tensor) -> None:
    """Count infinities and NaNs; and derive the sums from the counts if prefixes are single
    numbers."""
    bin_counts = counts.counts.numpy()
    infinity = infinity_bits(counts.dtype) >> prefix_shift(counts.dtype)
    any_nonfinite = counts.first + bin_counts.size - 1 > infinity
    if counts.coarse:
        if any_nonfinite:
            counts.nans = int(values.isnan().sum())
            counts.infinities = int(values.isinf().sum())
        return
    counts.zeros = int(bin_counts[0])
    if any_nonfinite:
        counts.infinities = counts.count_of(infinity)
        counts.nans = counts.count_from(infinity + 1)
    occupied = bin_counts[1:].nonzero()[0]
    occupied_counts = bin_counts[1:][occupied]
    magnitudes = prefix_floors(counts.dtype)[occupied + counts.first]
    counts.magnitude_sum = float(occupied_counts @ magnitudes)
    counts.square_sum = float(occupied_counts @ (magnitudes * magnitudes))


class OnCpu:
    """The CPU backend, see `Backend`.

    Args:
        mapper: how tensors are visited.
        scratch: memory that is reused.
        fractions: if given, each tensor's statistics (`Counts.stats`) are computed as soon as it is
            counted, while other cores count.
    """

    def __init__(self, mapper: Mapper, scratch: Scratch, fractions: Sequence[float] = ()) -> None:
        self._mapper, self._scratch, self._fractions = mapper, scratch, fractions

    def count(self, units: Units) -> list[list[Counts]]:
        """See `Backend.count`.

        Returns:
            Counts, arranged as the tensors are.

        Raises:
            DeltaLensError: a tensor has 2^32 entries or more.
        """

        def count_one(unit: int, index: int) -> Counts:
            counts = count(units[unit][index], self._scratch)
            if self._fractions:
                counts.stats(self._fractions)
            return counts

        return self._over(units, count_one)

    def visit(
        self,
        units: Units,
        counts: Sequence[Sequence[Counts]],
        ranks: Sequence[Sequence[int]],
        kept: Sequence[Sequence[PackedMask]] | None,
    ) -> _Visit:
        """See `Backend.visit`.

        Returns:
            A pass that marks, or one that sets entries to zero if `kept` is given.
        """
        kind = _Marking if kept is None else _Shrinking
        if kept is None:
            masks: list[list[list[PackedMask]]] = [[[] for _ in unit] for unit in units]
        else:
            masks = [[[mask] for mask in unit] for unit in kept]
        return kind(units, counts, ranks, masks, self._over, self._scratch)

    def _over(self, units: Units, work: Callable[[int, int], T]) -> list[list[T]]:
        """Call `work` with the indices of each unit and tensor, one task per tensor whatever is
        ranked together."""
        tasks = [
            (unit, index) for unit, tensors in enumerate(units) for index in range(len(tensors))
        ]
        results = iter(
            map_balanced(
                self._mapper,
                lambda task: work(*task),
                tasks,
                lambda task: units[task[0]][task[1]].values.numel(),
            )
        )
        return [[next(results) for _ in tensors] for tensors in units]


@dataclass
class _Visit:
    """See `Visit`: each unit is searched, at each of its ranks, in the bin that holds the entry."""

    units: Units
    counts: Sequence[Sequence[Counts]]
    ranks: Sequence[Sequence[int]]
    masks: list[list[list[PackedMask]]]
    over_tensors: Callable[[Units, Callable[[int, int], Any]], list[list[Any]]]
    scratch: Scratch
    _observed: list[list[Observed]] = field(default_factory=list)

    def searches(self) -> list[RankSearch]:
        """See `Visit`."""
        return [
            search
            for unit, (counts, ranks) in enumerate(zip(self.counts, self.ranks, strict=True))
            for search in searches_from_counts(Counts.combined(counts), ranks, unit)
        ]

    def __call__(self, windows: Sequence[Window]) -> list[Observed]:
        """See `Visit`."""
        by_unit: list[list[Window]] = [[] for _ in self.units]
        for window in windows:
            by_unit[window.unit].append(window)
        candidates = self.over_tensors(
            self.units, lambda unit, index: self._visit(unit, index, by_unit[unit])
        )
        self._observed = [
            [Observed(0, list(inside)) for inside in zip(*tensors, strict=True)]
            for tensors in candidates
        ]
        return [seen for unit in self._observed for seen in unit]

    def _visit(self, unit: int, index: int, windows: Sequence[Window]) -> list[Candidates]:
        raise NotImplementedError

    def finish(self, boundaries: Sequence[Boundary]) -> list[list[int | Tensor]]:
        """See `Visit`."""
        remaining = iter(boundaries)
        return [
            [self._settle(unit, rank, next(remaining).below) for rank in range(len(ranks))]
            for unit, ranks in enumerate(self.ranks)
        ]

    def _settle(self, unit: int, rank: int, least: int) -> int:
        from deltalens.numerics import compiled_masks

        for index, candidates in enumerate(self._observed[unit][rank].candidates):
            words = self.masks[unit][index][rank].words
            compiled_masks.set_bits(words, candidates.indices, candidates.keys, least)
        return least


class _Marking(_Visit):
    """Makes a mask at every rank, of the entries that reach its threshold: ties stay (GMT, Eq.
    3)."""

    def _visit(self, unit: int, index: int, windows: Sequence[Window]) -> list[Candidates]:
        from deltalens.numerics.selection import loops

        tensor, counts = self.units[unit][index], self.counts[unit][index]
        self.masks[unit][index], words = PackedMask.uninitialized(
            len(windows), tensor.values.numel()
        )
        integer, shift = np.dtype(f"i{tensor.values.dtype.itemsize}"), prefix_shift(counts.dtype)
        low, high = (np.array([window[end] for window in windows], dtype=integer) for end in (0, 1))
        capacities = [_capacity(counts, window, shift) for window in windows]
        starts = np.cumsum([0, *capacities])
        filled = starts[:-1].copy()
        indices, keys = np.empty(starts[-1], np.int64), np.empty(starts[-1], integer)
        sign_mask = np.array([np.iinfo(integer).max], dtype=integer)
        for start, piece in _pieces(tensor, self.scratch):
            filled_before, piece_words = filled.copy(), words[:, start // 32 :]
            loops.mark(_integers(piece), sign_mask, low, high, piece_words, filled, indices, keys)
            if start:
                for first, last in zip(filled_before, filled, strict=True):
                    indices[first:last] += start
        return [
            Candidates(tensor.name, keys[begin:end], indices[begin:end], None)
            for begin, end in zip(starts, filled, strict=False)
        ]


def _capacity(counts: Counts, window: Window, shift: int) -> int:
    """Room for the entries in a window; a loop writes one entry further before it knows that it is
    outside."""
    return counts.count_of(window.low >> shift) + 1 if window.low < window.high else 1


class _Shrinking(_Visit):
    """Sets what lies below the threshold to zero, in place, and marks everything else."""

    def _visit(self, unit: int, index: int, windows: Sequence[Window]) -> list[Candidates]:
        from deltalens.numerics.selection import loops

        tensor, counts = self.units[unit][index], self.counts[unit][index]
        (window,), (kept,), values = windows, self.masks[unit][index], tensor.values
        integer = np.dtype(f"i{values.dtype.itemsize}")
        capacity = _capacity(counts, window, prefix_shift(counts.dtype)) if window.high else 0
        indices, keys = np.empty(capacity, np.int64), np.empty(capacity, integer)
        if not window.high:
            kept.fill()
            return [Candidates(tensor.name, keys, indices, None)]
        filled, bounds = np.zeros(1, np.int64), np.array(window[:2], dtype=integer)
        sign_mask, words = (
            np.array([np.iinfo(integer).max], dtype=integer),
            kept.words.view(np.uint32),
        )
        for start, piece in _pieces(tensor, self.scratch):
            filled_before, bits = int(filled[0]), _integers(piece)
            loops.shrink(bits, sign_mask, bounds, words[start // 32 :], filled, indices, keys)
            indices[filled_before : filled[0]] += start
            if tensor.scale is not None:
                target = _integers(values)[start : start + piece.numel()]
                loops.clear_like(target, bits, sign_mask)
        return [Candidates(tensor.name, keys[: filled[0]], indices[: filled[0]], None)]

    def _settle(self, unit: int, rank: int, least: int) -> int:
        from deltalens.numerics.selection import loops

        for tensor, candidates in zip(
            self.units[unit], self._observed[unit][rank].candidates, strict=True
        ):
            loops.clear_at(_integers(tensor.values), candidates.indices, candidates.keys, least)
        return super()._settle(unit, rank, least)


def compile_loops(dtype: torch.dtype) -> None:
    """Compile or load the loops for a dtype, so that no step has to wait for it.

    Args:
        dtype: fp16, bf16, fp32 or fp64.

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
