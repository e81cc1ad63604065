"""Remove the lowest entries of a tensor in memory, by magnitude or by value, exact in number.

One visit marks what lies above a window and gathers the few entries inside, which then settle it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.errors import DeltaLensError, errors_from
from deltalens.numerics.bits import TASK, array_view, infinity_bits, integer_of
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.keys import keys_of
from deltalens.numerics.selection.prefix import Boundary, tie_comparison
from deltalens.numerics.selection.search import search
from deltalens.numerics.selection.searches import KnownBoundary, RankSearch
from deltalens.numerics.selection.windows import (
    Candidates,
    Observed,
    Window,
    next_window,
    windows_from_tensors,
)
from deltalens.numerics.workers import serial_map, workers

__all__ = ["KeepVisit", "KeptEntries", "compile_keep_loops", "keep_above", "keep_highest"]

_MANY = 1 << 24
"""The number of entries from which a pass over them is worth threads of its own."""


class KeepVisit:
    """Marks the entries of a tensor whose keys lie beyond a prefix.

    Args:
        values: 1-D, contiguous; fp16, bf16, fp32 or fp64; on any device.
        name: the tensor's name, for the error message.
        by_value: rank signed values (0 and -0 tie) rather than magnitudes.
        hash_key: key of the hash (`hashing.name_key`).
        compiled: on a CPU, use compiled loops; loading them takes a second and 100 MB.
    """

    def __init__(
        self, values: Tensor, name: str, by_value: bool, hash_key: int, compiled: bool = True
    ) -> None:
        self._values, self._name, self._by_value = values, name, by_value
        self._compiled = compiled and values.device.type == "cpu"
        self._hash_key = hash_key
        self.mask: PackedMask
        self.window: Window
        """That was visited last."""
        self.observed: Observed

    def __call__(self, windows: Sequence[Window]) -> list[Observed]:
        """Mark what lies above the window.

        Args:
            windows: a single window.

        Returns:
            What was observed in it.

        Raises:
            DeltaLensError: there is a NaN.
        """
        (self.window,) = windows
        mark = self.mark_compiled if self._compiled else self.mark_in_torch
        self.observed = mark(self.window)
        return [self.observed]

    def _observe(self, marked: int, indices: np.ndarray, keys: np.ndarray) -> Observed:
        candidates = Candidates(self._name, keys, indices, None, self._hash_key)
        return Observed(self._values.numel() - marked - keys.size, [candidates])

    def mark_in_torch(self, window: Window) -> Observed:
        """Mark what lies above a window with torch operations, on any device.

        Args:
            window: the window.

        Returns:
            What lies below and inside.

        Raises:
            DeltaLensError: there is a NaN.
        """
        values = self._values
        if bool(values.isnan().any()):
            raise self._nan_error()
        keys = keys_of(values, self._by_value)
        above = keys >= window.high
        indices = ((keys >= window.low) & ~above).nonzero().squeeze(1)
        self.mask = PackedMask(values.numel(), values.device)
        self.mask.write(0, above)
        marked = int(above.count_nonzero())
        return self._observe(marked, indices.cpu().numpy(), keys[indices].cpu().numpy())

    def mark_compiled(self, window: Window) -> Observed:
        """Mark what lies above a window with compiled loops, on the CPU.

        Args:
            window: the window.

        Returns:
            What lies below and inside; nothing inside if far more lies there than expected.

        Raises:
            DeltaLensError: there is a NaN.
        """
        from deltalens.numerics.selection import loops

        bits = array_view(self._values.view(integer_of(self._values.dtype)))
        ends = np.iinfo(bits.dtype)
        flag = ends.min if self._by_value else 0
        rule = np.array([ends.max, flag, infinity_bits(self._values.dtype)], dtype=bits.dtype)
        low, high = (np.array([min(end, ends.max)], dtype=bits.dtype) for end in window[:2])
        (self.mask,), (words,) = PackedMask.uninitialized(1, bits.size)

        def visit(start: int) -> tuple[int, int, int, np.ndarray, np.ndarray]:
            piece = bits[start : start + TASK]
            capacity = min(piece.size, int(2 * window.share * piece.size) + 4096) + 2
            indices, keys = np.empty(capacity, np.int64), np.empty(capacity, bits.dtype)
            marked, inside, any_nan = loops.mark_above(
                piece, rule, low, high, words[start // 32 :], indices, keys
            )
            fits = inside + 1 < capacity
            indices[:inside] += start
            return marked, inside if fits else -1, any_nan, indices[:inside], keys[:inside]

        starts = range(0, bits.size, TASK)
        if bits.size < _MANY:
            parts = list(serial_map(visit, starts))
        else:
            with workers() as mapper:
                parts = list(mapper(visit, starts))
        if any(piece[2] for piece in parts):
            raise self._nan_error()
        if any(piece[1] < 0 for piece in parts):
            # Far more lies in the window than expected: treated as a miss.
            return Observed(bits.size)
        indices = np.concatenate([np.empty(0, np.int64), *(piece[3] for piece in parts)])
        keys = np.concatenate([np.empty(0, bits.dtype), *(piece[4] for piece in parts)])
        return self._observe(sum(piece[0] for piece in parts), indices, keys)

    def _nan_error(self) -> DeltaLensError:
        return DeltaLensError(
            f"{self._name}: holds NaN and cannot be ranked; has the training diverged?"
        )

    def finish(self, boundary: Boundary) -> None:
        """Mark the entries in the window that lie beyond the boundary.

        Args:
            boundary: the boundary.
        """
        for candidates in self.observed.candidates:
            assert candidates.keys is not None
            assert candidates.indices is not None
            stays = candidates.keys >= boundary.below
            if boundary.tie is not None:
                tied = np.flatnonzero(candidates.keys == boundary.below)
                hashes = torch.from_numpy(candidates.hashes_at(tied))
                inside = torch.empty_like(hashes, dtype=torch.bool)
                tie_comparison(boundary.tie, self._name)(hashes, boundary.tie.hash, out=inside)
                stays[tied] = ~inside.numpy()
            self._include(candidates.indices[stays])

    def _include(self, indices: np.ndarray) -> None:
        mask = self.mask
        if self._compiled:
            from deltalens.numerics import compiled_masks

            compiled_masks.set_bits(mask.words, indices, np.ones(indices.size, np.int8), 1)
            return
        unpacked = mask.unpacked()
        unpacked[torch.from_numpy(indices).to(unpacked.device)] = True
        mask.write(0, unpacked)


class KeptEntries(NamedTuple):
    """The entries of a tensor that stay."""

    mask: PackedMask
    """Mask of the entries that stay."""
    boundary: Boundary
    """Where the removed prefix ends, in keys: magnitude bits, or those with the value's sign."""
    near: Window | None
    """The window to try first next time, if one is known."""


def keep_highest(
    values: Tensor,
    removed: int,
    key: int,
    *,
    by_value: bool = False,
    name: str = "a tensor",
    near: Window | None = None,
) -> KeptEntries:
    """Keep all but the `removed` lowest entries.

    Args:
        values: 1-D, contiguous; fp16, bf16, fp32 or fp64; on any device.
        removed: the number of entries to remove, from 0 to n. Among ties, the lowest hashes go
            first.
        key: key of the hash (`hashing.name_key`).
        by_value: rank signed values (0 and -0 tie) rather than magnitudes.
        name: the tensor's name, for the error message.
        near: what was returned for slightly earlier values of this tensor. It saves the sample, and
            changes nothing else.

    Returns:
        The mask of the entries that stay, the boundary, and the window for next time.

    Raises:
        DeltaLensError: there is a NaN.
        IndexError: `removed` is outside the tensor.
    """
    if not 0 <= removed <= values.numel():
        raise IndexError(f"{removed} of {values.numel()} entries")
    visit = KeepVisit(values, name, by_value, key)
    if not removed:
        lowest_key = torch.iinfo(keys_of(values[:0]).dtype).min
        return KeptEntries(_keep_from(visit, lowest_key), Boundary(lowest_key), None)
    target = RankSearch(windows_from_tensors([values], removed - 1, by_value, near), removed - 1)
    (boundary,) = search([target], visit)
    assert boundary is not None
    visit.finish(boundary)
    keys = visit.observed.keys
    last = boundary.below - (boundary.tie is None)
    return KeptEntries(
        visit.mask, boundary, next_window(near, visit.window, last, keys, values.numel())
    )


def compile_keep_loops(dtype: torch.dtype) -> None:
    """Compile or load the loops of `keep_highest` for a dtype, so that no step has to wait for it.

    Args:
        dtype: fp16, bf16, fp32 or fp64.

    Raises:
        DeltaLensError: numba cannot compile them.
    """
    with errors_from("numba", f"the loops for {dtype} cannot be compiled"):
        keep_highest(torch.ones(64, dtype=dtype), 3, 0)


def keep_above(values: Tensor, threshold: float, *, name: str = "a tensor") -> PackedMask:
    """Keep the entries whose value is greater than a threshold.

    Args:
        values: as in `keep_highest`.
        threshold: any number but NaN; rounded to the values' dtype.
        name: the tensor's name, for the error message.

    Returns:
        The mask of the entries that stay.

    Raises:
        DeltaLensError: there is a NaN.
    """
    end = int(keys_of(torch.tensor([threshold], dtype=values.dtype), True)) + 1
    return _keep_from(KeepVisit(values, name, True, 0), end)


def _keep_from(visit: KeepVisit, end: int) -> PackedMask:
    """Keep what lies at or beyond a known key."""
    search([KnownBoundary(iter([Window(end, end)]), Boundary(end))], visit)
    return visit.mask
