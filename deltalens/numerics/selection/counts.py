"""Counts of magnitudes, which preserve their order and add up: all ranks at once come from them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import (
    PREFIXES,
    infinity_bits,
    integer_of,
    magnitude_bits,
    magnitude_of_bits,
)
from deltalens.numerics.kernels import count_true, equal
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.keys import prefix_shift
from deltalens.numerics.sizes import SIZES

__all__ = ["Counts", "OctaveBins", "TensorStats", "locate", "octave_bins", "prefix_floors"]


def locate(counts: Any, ranks: Any) -> tuple[Any, Any, Any]:
    """Find the bins that hold given ranks.

    Args:
        counts: int64, (..., B): an array on the host, or a tensor, which is not waited for.
        ranks: 0-based and ascending, int64, (..., R); below the sum of the counts, which is not
            checked for tensors.

    Returns:
        The bin of each rank, the rank within the bin, and the bin's count: each int64, (..., R).

    Raises:
        IndexError: an array holds fewer entries.
    """
    if isinstance(counts, np.ndarray):
        cumulative = counts.cumsum()
        bins = cumulative.searchsorted(ranks, side="right")
        bin_counts = counts[bins]
        return bins, ranks - cumulative[bins] + bin_counts, bin_counts
    cumulative = counts.cumsum(-1)
    bins = torch.searchsorted(cumulative, ranks, right=True).clamp_(max=cumulative.shape[-1] - 1)
    bin_counts = counts.gather(-1, bins)
    return bins, ranks - cumulative.gather(-1, bins) + bin_counts, bin_counts


@dataclass
class Counts:
    """Counts of |x| by prefix, the leading 15 bits of its IEEE-754 representation.

    Counts take one pass over the data, have constant size (at most 32,768 int64), and add up over
    chunks, tensors, shards, devices and ranks. Bins are in order of magnitude, so every rank
    statistic follows from the cumulative sum. For bf16 and fp16 bins are single values and the
    result is exact; for fp32 and fp64 it is the bin (1/128 and 1/16 of an octave) to search.

    Counts of a tensor on an accelerator are 0-D tensors there, and nothing waits for them.
    """

    dtype: torch.dtype
    """Dtype of the numbers counted: fp16, bf16, fp32 or fp64."""
    counts: Tensor
    """How many numbers have prefix 0, and how many have each prefix from `first` on: int64, (1 +
    P,)."""
    first: int = 1
    """The first prefix above 0 that has a bin."""
    zeros: Any = 0
    """Number of entries that are exactly zero; they share the first bin with subnormals."""
    nans: Any = 0
    infinities: Any = 0
    magnitude_sum: Any = 0.0
    """Sum of the magnitudes, if it was computed; infinities and NaNs count."""
    square_sum: Any = 0.0
    """Sum of the squares, likewise."""
    _stats_cache: dict[tuple[float, ...], TensorStats] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def empty(cls, dtype: torch.dtype, device: torch.device | str = "cpu") -> Counts:
        """Make empty counts for `update`, which does not count NaNs and infinities apart, nor sums.

        Args:
            dtype: dtype of the numbers to count.
            device: where the counts are.

        Returns:
            Counts over all prefixes.

        Raises:
            TypeError: magnitudes of this dtype are not ranked.
        """
        prefix_shift(dtype)
        return cls(dtype, torch.zeros(PREFIXES, dtype=torch.int64, device=device))

    def update(self, values: Tensor, scratch: Scratch | None = None) -> None:
        """Count further entries.

        Args:
            values: contiguous, of any shape, of this dtype and on this device.
            scratch: memory for intermediate results.

        Raises:
            TypeError: the dtype is another one.
        """
        if values.dtype != self.dtype:
            raise TypeError(f"counts of {self.dtype} cannot take {values.dtype}")
        flat, scratch, chunk = values.view(-1), scratch or Scratch(), SIZES.chunk
        self._stats_cache.clear()
        for start in range(0, flat.numel(), chunk):
            self._count(flat[start : start + chunk], scratch)

    def _count(self, chunk: Tensor, scratch: Scratch) -> None:
        size, device, shift = chunk.numel(), chunk.device, prefix_shift(self.dtype)
        buffer = scratch.get("counted bits", integer_of(self.dtype), size, device)
        bits = magnitude_bits(chunk, out=buffer)
        if shift:
            torch.bitwise_right_shift(bits, shift, out=bits)
            bits = scratch.get("counted prefixes", torch.int16, size, device).copy_(bits)
        counts = torch.bincount(bits, minlength=PREFIXES)
        self.counts += counts
        zeros = int(counts[0])
        if zeros and shift:
            mask = scratch.get("counted zeros", torch.bool, size, device)
            zeros = count_true(equal(chunk, 0, out=mask))
        self.zeros += zeros

    def merge(self, other: Counts) -> None:
        """Add other counts to these.

        Args:
            other: counts of the same dtype; both are over all prefixes.

        Raises:
            TypeError: the dtype is another one.
        """
        if other.dtype != self.dtype:
            raise TypeError(f"counts of {self.dtype} and {other.dtype} do not add")
        self._stats_cache.clear()
        self.counts += other.counts.to(self.counts.device)
        self.zeros += other.zeros

    @classmethod
    def combined(cls, parts: Sequence[Counts]) -> Counts:
        """Add up several counts; sums are left out.

        Args:
            parts: counts of one dtype and device, at least one.

        Returns:
            The counts of all entries.
        """
        if len(parts) == 1:
            return parts[0]
        first = min(part.first for part in parts)
        size = max(part.first + part.counts.numel() for part in parts) - first
        if all(part.counts.numel() == size for part in parts):
            counts = functools.reduce(torch.add, (part.counts for part in parts))
        else:  # On the CPU each covers only its own range of prefixes.
            counts = torch.zeros(size, dtype=torch.int64)
            target = counts.numpy()
            for occupied, start in (
                (part.counts.numpy(), part.first - first + 1) for part in parts
            ):
                target[0] += occupied[0]
                target[start:][: occupied.size - 1] += occupied[1:]
        special = (
            sum(columns)
            for columns in zip(*(counts.special_counts for counts in parts), strict=True)
        )
        return cls(parts[0].dtype, counts, first, *special)

    @property
    def special_counts(self) -> tuple[Any, Any, Any]:
        """Zeros, NaNs and infinities."""
        return self.zeros, self.nans, self.infinities

    @property
    def total(self) -> int:
        """The number of entries counted."""
        return int(self.counts.sum())

    @property
    def coarse(self) -> bool:
        """Whether a bin holds a range of magnitudes (fp32, fp64) rather than a single one."""
        return prefix_shift(self.dtype) > 0

    def count_from(self, prefix: int) -> int:
        """Count the entries with this prefix or a greater one.

        Args:
            prefix: a prefix above 0.

        Returns:
            The number of entries.
        """
        return int(self.counts[max(1, prefix - self.first + 1) :].sum())

    @property
    def nonfinite(self) -> int:
        """The number of entries that are infinite or NaN."""
        return self.count_from(infinity_bits(self.dtype) >> prefix_shift(self.dtype))

    def count_of(self, prefix: int) -> int:
        """Count the entries with one prefix; on the CPU.

        Args:
            prefix: any prefix.

        Returns:
            The number of entries.
        """
        index = prefix - self.first + 1 if prefix else 0
        counted = not prefix or 1 <= index < self.counts.numel()
        return int(self.counts.numpy()[index]) if counted else 0

    def prefixes_at(self, ranks: Sequence[int]) -> tuple[list[int], list[int]]:
        """Find the prefixes of the entries at given ranks.

        Args:
            ranks: 0-based, in ascending order of magnitude.

        Returns:
            The prefix of each rank, and its rank among the entries with that prefix.

        Raises:
            IndexError: a rank is negative, or not below `total`.
        """
        if ranks and min(ranks) < 0:
            raise IndexError(f"rank {min(ranks)}")
        wanted = np.array(ranks, dtype=np.int64)
        bins, inside, _ = locate(self.counts.cpu().numpy(), wanted)
        return [index and index + self.first - 1 for index in bins.tolist()], inside.tolist()

    def quantile(self, fractions: Sequence[float], finite: int | None = None) -> list[float]:
        """Compute quantiles of the finite entries' magnitudes, by nearest rank.

        They are exact for bf16 and fp16. Otherwise each is the lower edge of the right bin, below
        the true value by at most 0.8 % (fp32) or 6.3 % (fp64).

        Args:
            fractions: from 0 to 1.
            finite: the number of finite entries, if it is known.

        Returns:
            A magnitude per fraction; NaN if there is no finite entry.
        """
        finite = self.total - self.nonfinite if finite is None else finite
        if finite == 0:
            return [float("nan")] * len(fractions)
        ranks = [min(finite - 1, max(0, round(q * (finite - 1)))) for q in fractions]
        magnitudes: list[float] = prefix_floors(self.dtype)[self.prefixes_at(ranks)[0]].tolist()
        return magnitudes

    def edges(self) -> Tensor:
        """Return the smallest magnitude of each finite bin.

        Returns:
            Ascending, fp64, (B,).
        """
        finite = infinity_bits(self.dtype) >> prefix_shift(self.dtype)
        return torch.from_numpy(prefix_floors(self.dtype)[:finite])

    def stats(self, fractions: Sequence[float]) -> TensorStats:
        """Compute the statistics that are recorded of a tensor on the CPU; they are cached.

        Args:
            fractions: the fractions at which quantiles are taken.

        Returns:
            The statistics.
        """
        key = tuple(fractions)
        if key not in self._stats_cache:
            self._stats_cache[key] = self._make_stats(key)
        return self._stats_cache[key]

    def _make_stats(self, fractions: Sequence[float]) -> TensorStats:
        from deltalens.numerics.selection import loops

        starts, counts = octave_bins(self.dtype).starts, self.counts.numpy()
        octaves = np.zeros(len(starts) - 1, dtype=np.int64)
        first, width = int(starts[0]), int(starts[1] - starts[0])
        below = int(counts[0]) + loops.octaves(counts[1:], self.first, first, width, octaves)
        quantiles = self.quantile(fractions, below + int(octaves.sum()))
        return TensorStats(
            self.dtype,
            octaves,
            self.zeros,
            below - self.zeros,
            self.infinities,
            self.nans,
            self.magnitude_sum,
            self.square_sum,
            quantiles,
        )


@dataclass
class TensorStats:
    """All statistics of one tensor's magnitudes that are recorded."""

    dtype: torch.dtype
    octaves: np.ndarray
    """Counts of four bins per octave (`octave_bins`): int64, (B,)."""
    zeros: int
    subnormals: int
    infinities: int
    nans: int
    magnitude_sum: float
    """Sum of the magnitudes."""
    square_sum: float
    """Sum of the squares."""
    quantiles: list[float]
    """Magnitudes at the requested fractions (`Counts.quantile`)."""

    @property
    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower edges, upper edges (fp64) and counts (int64) of the occupied bins, ascending."""
        edges = octave_bins(self.dtype).edges
        occupied = self.octaves.nonzero()[0]
        return edges[occupied], edges[occupied + 1], self.octaves[occupied]


@functools.cache
def prefix_floors(dtype: torch.dtype) -> np.ndarray:
    """Return the smallest number with each prefix.

    Args:
        dtype: dtype of the numbers.

    Returns:
        fp64, (32768,).
    """
    bits = torch.arange(PREFIXES) << prefix_shift(dtype)
    floors: np.ndarray = bits.to(integer_of(dtype)).view(dtype).double().numpy()
    return floors


class OctaveBins(NamedTuple):
    """Four bins per octave over all normal finite numbers of a dtype."""

    edges: np.ndarray
    """Edges of the bins, fp64, (B + 1,)."""
    starts: np.ndarray
    """The first prefix of each bin, and the prefix of infinity: int64, (B + 1,)."""


@functools.cache
def octave_bins(dtype: torch.dtype) -> OctaveBins:
    """Return the octave bins of a dtype.

    Args:
        dtype: dtype of the numbers.

    Returns:
        The bins.
    """
    info, shift = torch.finfo(dtype), prefix_shift(dtype)
    first, one, two = (
        int(magnitude_bits(torch.tensor([number], dtype=dtype))) >> shift
        for number in (info.tiny, 1.0, 2.0)
    )
    infinity = infinity_bits(dtype) >> shift
    starts = np.arange(first, infinity + 1, (two - one) // 4)
    edges = [magnitude_of_bits(int(prefix) << shift, dtype) for prefix in starts[:-1]]
    return OctaveBins(np.array([*edges, 2.0 * 2.0 ** float(np.frexp(info.max)[1] - 1)]), starts)
