"""Counts of magnitudes that preserve their order, and add: from them come all ranks at once."""

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
    """The bin in which a rank lies (0-based, ascending), its rank inside, and how many are there.

    Args:
        counts: int64, (..., B): of an array on the host, or of a tensor, which is not waited for.
        ranks: int64, (..., R); below the sum of the counts: of a tensor nobody looks.

    Raises:
        IndexError: an array holds fewer.
    """
    if isinstance(counts, np.ndarray):
        running = counts.cumsum()
        places = running.searchsorted(ranks, side="right")
        among = counts[places]
        return places, ranks - running[places] + among, among
    running = counts.cumsum(-1)
    places = torch.searchsorted(running, ranks, right=True).clamp_(max=running.shape[-1] - 1)
    among = counts.gather(-1, places)
    return places, ranks - running.gather(-1, places) + among, among


@dataclass
class Counts:
    """Counts of |x| by prefix, the leading 15 bits of its IEEE-754 representation.

    One pass over the data, constant size (at most 32,768 int64), and it adds: over chunks, tensors,
    shards, devices and ranks. Bins are in order of magnitude, so every rank statistic comes out of
    the running sum; for bf16 and fp16 the bins are single values and it is exact, for fp32 and
    fp64 it names the bin (1/128 and 1/16 of an octave) in which to look.

    Of a tensor on an accelerator the numbers are 0-D tensors there, and nothing waits for them.
    """

    dtype: torch.dtype
    """Of the numbers counted: fp16, bf16, fp32 or fp64."""
    counts: Tensor
    """How many have prefix 0, and how many each prefix from `first` on: int64, (1 + P,)."""
    first: int = 1
    zeros: Any = 0
    """Entries that are exactly zero; they lie in the first bin, beside subnormals."""
    nans: Any = 0
    infinities: Any = 0
    sizes: Any = 0.0
    """Sum of the magnitudes, where it was taken; infinities and NaNs count."""
    squares: Any = 0.0
    """Sum of their squares."""
    _made: dict[tuple[float, ...], TensorStats] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def empty(cls, dtype: torch.dtype, device: torch.device | str = "cpu") -> Counts:
        """Of nothing so far: to `update`, which leaves NaNs, infinities and sums alone.

        Raises:
            TypeError: a dtype whose magnitudes are not ranked.
        """
        prefix_shift(dtype)
        return cls(dtype, torch.zeros(PREFIXES, dtype=torch.int64, device=device))

    def update(self, values: Tensor, scratch: Scratch | None = None) -> None:
        """Count the entries of `values` (contiguous, any shape, of this dtype, on this device)."""
        if values.dtype != self.dtype:
            raise TypeError(f"counts of {self.dtype} cannot take {values.dtype}")
        flat, scratch, chunk = values.view(-1), scratch or Scratch(), SIZES.chunk
        self._made.clear()
        for start in range(0, flat.numel(), chunk):
            self._count(flat[start : start + chunk], scratch)

    def _count(self, piece: Tensor, scratch: Scratch) -> None:
        size, device, shift = piece.numel(), piece.device, prefix_shift(self.dtype)
        room = scratch.get("counted bits", integer_of(self.dtype), size, device)
        bits = magnitude_bits(piece, out=room)
        if shift:
            torch.bitwise_right_shift(bits, shift, out=bits)
            bits = scratch.get("counted prefixes", torch.int16, size, device).copy_(bits)
        counts = torch.bincount(bits, minlength=PREFIXES)
        self.counts += counts
        first = int(counts[0])
        if first and shift:
            mask = scratch.get("counted zeros", torch.bool, size, device)
            first = count_true(equal(piece, 0, out=mask))
        self.zeros += first

    def merge(self, other: Counts) -> None:
        """Add others of the same dtype to these, both over all prefixes."""
        if other.dtype != self.dtype:
            raise TypeError(f"counts of {self.dtype} and {other.dtype} do not add")
        self._made.clear()
        self.counts += other.counts.to(self.counts.device)
        self.zeros += other.zeros

    @classmethod
    def together(cls, several: Sequence[Counts]) -> Counts:
        """Of all that several have counted, of one dtype and device; sums are left out."""
        if len(several) == 1:
            return several[0]
        first = min(one.first for one in several)
        size = max(one.first + one.counts.numel() for one in several) - first
        if all(one.counts.numel() == size for one in several):
            counts = functools.reduce(torch.add, (one.counts for one in several))
        else:  # On the CPU, over what each has occupied.
            counts = torch.zeros(size, dtype=torch.int64)
            whole = counts.numpy()
            for some, begins in ((one.counts.numpy(), one.first - first + 1) for one in several):
                whole[0] += some[0]
                whole[begins:][: some.size - 1] += some[1:]
        apart = (sum(parts) for parts in zip(*(o.apart for o in several), strict=True))
        return cls(several[0].dtype, counts, first, *apart)

    @property
    def apart(self) -> tuple[Any, Any, Any]:
        """Zeros, NaNs and infinities."""
        return self.zeros, self.nans, self.infinities

    @property
    def total(self) -> int:
        """How many entries were counted."""
        return int(self.counts.sum())

    @property
    def coarse(self) -> bool:
        """Whether a bin holds a range of magnitudes (fp32, fp64) rather than a single one."""
        return prefix_shift(self.dtype) > 0

    def beyond(self, prefix: int) -> int:
        """How many have this prefix, above 0, or a greater one."""
        return int(self.counts[max(1, prefix - self.first + 1) :].sum())

    @property
    def nonfinite(self) -> int:
        """How many of them are infinite or NaN."""
        return self.beyond(infinity_bits(self.dtype) >> prefix_shift(self.dtype))

    def count_at(self, prefix: int) -> int:
        """How many have this prefix, on the CPU."""
        place = prefix - self.first + 1 if prefix else 0
        here = not prefix or 1 <= place < self.counts.numel()
        return int(self.counts.numpy()[place]) if here else 0

    def prefixes_at(self, ranks: Sequence[int]) -> tuple[list[int], list[int]]:
        """The prefix of each rank (0-based, ascending magnitude), and its rank inside.

        Raises:
            IndexError: a rank is not below `total`.
        """
        if ranks and min(ranks) < 0:
            raise IndexError(f"rank {min(ranks)}")
        spec = np.array(ranks, dtype=np.int64)
        places, inside, _ = locate(self.counts.cpu().numpy(), spec)
        return [p and p + self.first - 1 for p in places.tolist()], inside.tolist()

    def quantile(self, fractions: Sequence[float], finite: int | None = None) -> list[float]:
        """Magnitudes at these fractions of the finite entries, by nearest rank.

        Exact for bf16 and fp16; else the lower edge of the right bin, below the true value by at
        most 0.8 % (fp32) or 6.3 % (fp64). NaN where nothing finite was counted.

        Args:
            fractions: from 0 to 1.
            finite: how many entries are finite, if that is known.
        """
        finite = self.total - self.nonfinite if finite is None else finite
        if finite == 0:
            return [float("nan")] * len(fractions)
        ranks = [min(finite - 1, max(0, round(q * (finite - 1)))) for q in fractions]
        found: list[float] = prefix_floors(self.dtype)[self.prefixes_at(ranks)[0]].tolist()
        return found

    def edges(self) -> Tensor:
        """The smallest magnitude of each finite bin, ascending, fp64."""
        finite = infinity_bits(self.dtype) >> prefix_shift(self.dtype)
        return torch.from_numpy(prefix_floors(self.dtype)[:finite])

    def numbers(self, fractions: Sequence[float]) -> TensorStats:
        """All that is recorded of a tensor on the CPU, with quantiles at these fractions; made
        once."""
        spec = tuple(fractions)
        if spec not in self._made:
            self._made[spec] = self._numbers(spec)
        return self._made[spec]

    def _numbers(self, fractions: Sequence[float]) -> TensorStats:
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
            self.sizes,
            self.squares,
            quantiles,
        )


@dataclass
class TensorStats:
    """All that is recorded of one tensor's magnitudes."""

    dtype: torch.dtype
    octaves: np.ndarray
    """Counts of four bins an octave (`octave_bins`): int64, (B,)."""
    zeros: int
    subnormals: int
    infinities: int
    nans: int
    total: float
    """Sum of the magnitudes."""
    squares: float
    """Sum of their squares."""
    quantiles: list[float]
    """At the fractions asked for (`Counts.quantile`)."""

    @property
    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower edges, upper edges (fp64) and counts (int64) of the occupied bins, ascending."""
        edges = octave_bins(self.dtype).edges
        occupied = self.octaves.nonzero()[0]
        return edges[occupied], edges[occupied + 1], self.octaves[occupied]


@functools.cache
def prefix_floors(dtype: torch.dtype) -> np.ndarray:
    """The smallest number with each prefix, fp64, (32768,)."""
    bits = torch.arange(PREFIXES) << prefix_shift(dtype)
    found: np.ndarray = bits.to(integer_of(dtype)).view(dtype).double().numpy()
    return found


class OctaveBins(NamedTuple):
    """Four bins an octave over all normal finite numbers of a dtype."""

    edges: np.ndarray
    """fp64, (B + 1,)."""
    starts: np.ndarray
    """The first prefix of each bin, and that of infinity: int64, (B + 1,)."""


@functools.cache
def octave_bins(dtype: torch.dtype) -> OctaveBins:
    """The bins of a dtype."""
    info, shift = torch.finfo(dtype), prefix_shift(dtype)
    first, one, two = (
        int(magnitude_bits(torch.tensor([number], dtype=dtype))) >> shift
        for number in (info.tiny, 1.0, 2.0)
    )
    infinity = infinity_bits(dtype) >> shift
    starts = np.arange(first, infinity + 1, (two - one) // 4)
    edges = [magnitude_of_bits(int(prefix) << shift, dtype) for prefix in starts[:-1]]
    return OctaveBins(np.array([*edges, 2.0 * 2.0 ** float(np.frexp(info.max)[1] - 1)]), starts)
