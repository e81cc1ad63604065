"""What is ranked: entries by their magnitude, by their signed value, or by their hash alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltalens.numerics.bits import digit_count, magnitude_bits
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.sizes import SIZES

__all__ = [
    "Chunk",
    "Entries",
    "Part",
    "Sample",
    "Source",
    "keys_of",
    "prefix_shift",
    "sample_stride",
]


class Chunk(NamedTuple):
    """A run of consecutive entries of one tensor."""

    name: str
    """The tensor's name: part of the key."""
    start: int
    """Flat index, within the tensor, of the first entry."""
    values: Tensor
    """The entries, 1-D and contiguous; only their magnitudes are ranked. (Of a source of hashes:
    those.) May be reused after."""


Part = Callable[[], Iterable[Chunk]]
"""Some chunks of a unit, in order; called once a pass, each time from the beginning."""

Source = Sequence[Part]
"""All of a unit, in parts that different threads may visit at the same time."""


class Sample(NamedTuple):
    """Some entries of one tensor, evenly spaced."""

    name: str
    indices: Tensor
    """Flat indices, int64; free to overwrite."""
    values: Tensor
    """The entries themselves, 1-D."""


class Entries(NamedTuple):
    """What this process has in memory of a tensor."""

    name: str
    values: Tensor
    """1-D, contiguous; fp16, bf16, fp32 or fp64. May be empty."""
    scale: Tensor | None = None
    """What they still have to be divided by, 0-D; the magnitudes ranked are those after it."""

    def pieces(self, size: int, scratch: Scratch | None = None) -> Iterator[tuple[int, Tensor]]:
        """(start, entries) piece by piece, divided by the scale if there is one.

        Args:
            size: of a piece, in entries.
            scratch: where what is divided lies, until the next piece; else in memory of its own.
        """
        for start in range(0, self.values.numel(), size):
            piece = self.values[start : start + size]
            if self.scale is not None:
                room = None
                if scratch is not None:
                    room = scratch.get("unscaled", piece.dtype, piece.numel(), piece.device)
                piece = torch.div(piece, self.scale.to(piece.device, piece.dtype), out=room)
            yield start, piece


def prefix_shift(dtype: torch.dtype) -> int:
    """How many of the magnitude bits stand behind the leading 15, the prefix."""
    return 16 * (digit_count(dtype) - 1)


def keys_of(values: Tensor, by_value: bool = False) -> Tensor:
    """Integers that sort as the entries are ranked: by magnitude, or by value (0 and -0 tie)."""
    sizes = magnitude_bits(values)
    return torch.where(values.view(sizes.dtype) < 0, -sizes, sizes) if by_value else sizes


def sample_stride(total: int) -> int:
    """How far apart the sampled entries of a unit lie."""
    return max(1, total // SIZES.unit_sample)
