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
    """The tensor's name, which is part of the key."""
    start: int
    """Flat index of the first entry within the tensor."""
    values: Tensor
    """The entries, 1-D and contiguous, of which only the magnitudes are ranked; in a source of
    hashes, the hashes. The memory may be reused afterwards."""


Part = Callable[[], Iterable[Chunk]]
"""Some chunks of a unit, in order; called once per pass, each time from the beginning."""

Source = Sequence[Part]
"""All chunks of a unit, in parts that different threads may visit at the same time."""


class Sample(NamedTuple):
    """Some entries of one tensor, evenly spaced."""

    name: str
    indices: Tensor
    """Flat indices, int64; may be overwritten."""
    values: Tensor
    """The entries, 1-D."""


class Entries(NamedTuple):
    """This process's part of a tensor in memory."""

    name: str
    values: Tensor
    """1-D, contiguous; fp16, bf16, fp32 or fp64. May be empty."""
    scale: Tensor | None = None
    """The loss scale by which the entries still have to be divided, 0-D; magnitudes are ranked
    after the division. None: nothing to divide by."""

    def pieces(self, size: int, scratch: Scratch | None = None) -> Iterator[tuple[int, Tensor]]:
        """Divide the entries into pieces, and by the scale if there is one.

        Args:
            size: entries per piece.
            scratch: memory for divided entries, reused by the next piece; None allocates new
                memory.

        Returns:
            An iterator over pairs of start and entries.
        """
        for start in range(0, self.values.numel(), size):
            piece = self.values[start : start + size]
            if self.scale is not None:
                out = None
                if scratch is not None:
                    out = scratch.get("unscaled", piece.dtype, piece.numel(), piece.device)
                piece = torch.div(piece, self.scale.to(piece.device, piece.dtype), out=out)
            yield start, piece


def prefix_shift(dtype: torch.dtype) -> int:
    """Return the number of magnitude bits behind the prefix, the leading 15.

    Args:
        dtype: fp16, bf16, fp32 or fp64.

    Returns:
        0 (bf16, fp16), 16 (fp32) or 48 (fp64).

    Raises:
        TypeError: magnitudes of this dtype are not ranked.
    """
    return 16 * (digit_count(dtype) - 1)


def keys_of(values: Tensor, by_value: bool = False) -> Tensor:
    """Compute integers that sort as the entries are ranked.

    Args:
        values: floats, contiguous.
        by_value: rank signed values (0 and -0 tie) rather than magnitudes.

    Returns:
        Integers of the same width and shape.
    """
    magnitudes = magnitude_bits(values)
    return (
        torch.where(values.view(magnitudes.dtype) < 0, -magnitudes, magnitudes)
        if by_value
        else magnitudes
    )


def sample_stride(total: int) -> int:
    """Return the distance between sampled entries of a unit.

    Args:
        total: the number of entries of the unit.

    Returns:
        The distance in entries, at least 1.
    """
    return max(1, total // SIZES.unit_sample)
