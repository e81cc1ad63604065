"""Masks as one bit an entry, and how much two of them have in common."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

__all__ = ["PackedMask", "chance_of", "containment", "jaccard"]

_WEIGHTS = (128, 64, 32, 16, 8, 4, 2, 1)


class PackedMask:
    """A mask of n entries in n / 8 bytes, filled and compared a chunk at a time.

    Args:
        size: entries.
        device: where the bits live.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self._here = torch.device(device).type == "cpu"
        self._bytes = np.zeros(-(-size // 64) * 8, dtype=np.uint8)
        self._there: Tensor | None = None
        if not self._here:
            self._there, self._bytes = torch.from_numpy(self._bytes).to(device), self._bytes[:0]

    def copy(self) -> PackedMask:
        """A mask of its own with the same bits."""
        made = PackedMask(0)
        made.size, made._here, made._bytes = self.size, self._here, self._bytes.copy()
        made._there = None if self._there is None else self._there.clone()
        return made

    def write(self, start: int, mask: Tensor) -> None:
        """Set the entries from `start` (a multiple of 8) on to a bool mask, 1-D."""
        if self._there is None:
            self.write_here(start, mask.cpu().numpy())
            return
        length = -(-mask.numel() // 8)
        padded = mask.new_zeros(length * 8)
        padded[: mask.numel()] = mask
        weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=mask.device)
        packed = (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8)
        self._there[start // 8 : start // 8 + length] = packed

    def write_here(self, start: int, mask: np.ndarray) -> None:
        """`write`, for a mask on the CPU and in numpy."""
        self._bytes[start // 8 : start // 8 + -(-mask.size // 8)] = np.packbits(mask)

    def set(self, places: np.ndarray) -> None:
        """Make the entries at these flat indices true."""
        bits = (128 >> (places & 7)).astype(np.uint8)
        if self._there is None:
            np.bitwise_or.at(self._bytes, places >> 3, bits)
            return
        # Of one byte there may be several: they are different bits, so that adding is setting.
        added = np.zeros(self._there.numel(), dtype=np.uint8)
        np.bitwise_or.at(added, places >> 3, bits)
        self._there |= torch.from_numpy(added).to(self._there.device)

    @functools.cached_property
    def count(self) -> int:
        """How many entries are true; asked once the mask is complete."""
        return self.count_both(self)

    def count_both(self, other: PackedMask) -> int:
        """How many entries are true in both."""
        if self._there is not None and other._there is not None:
            both = self._there & other._there
            ones = torch.tensor([byte.bit_count() for byte in range(256)], device=both.device)
            return int(ones[both.long()].sum())
        both_here = self._bytes.view(np.uint64) & other._bytes.view(np.uint64)
        return int(np.bitwise_count(both_here).sum(dtype=np.int64))

    def include(self, other: PackedMask) -> None:
        """Make true what is true in the other."""
        if self._there is not None and other._there is not None:
            self._there |= other._there
        else:
            np.bitwise_or(self._bytes, other._bytes, out=self._bytes)
        self.__dict__.pop("count", None)

    def unpacked(self) -> Tensor:
        """The mask itself: bool, (size,)."""
        if self._there is None:
            return torch.from_numpy(np.unpackbits(self._bytes, count=self.size)).bool()
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self._there.device)
        return (self._there[:, None] >> shifts & 1).bool().view(-1)[: self.size]


def jaccard(both: float, one: float, other: float) -> float:
    """|A and B| / |A or B|; 1 where both are empty."""
    union = one + other - both
    return both / union if union else 1.0


def containment(both: float, one: float) -> float:
    """|A and B| / |A|: the share of A that is in B; 1 where A is empty."""
    return both / one if one else 1.0


def chance_of(one: float, other: float, size: int) -> float:
    """The Jaccard index to expect of two masks of these sizes drawn at random: with the expected
    |A and B| = |A| |B| / n."""
    return jaccard(one * other / size, one, other) if size else 1.0
