"""Masks with one bit per entry, and how much two of them have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.constants import bit_weights, ones_in_byte

__all__ = [
    "COMPARED_COUNTS",
    "PackedMask",
    "compare",
    "compare_on_device",
    "containment",
    "expected_jaccard",
    "jaccard",
]

COMPARED_COUNTS = 6
"""How many numbers `compare` returns."""


class PackedMask:
    """A mask of n entries in n / 8 bytes, on any device; all false at first.

    Args:
        size: number of entries, n.
        device: where the bits are.
        data: the bytes to use instead of new ones: uint8, of the same length, zero beyond n.
    """

    def __init__(
        self, size: int, device: torch.device | str = "cpu", data: Tensor | None = None
    ) -> None:
        self.size = size
        self.bytes = torch.zeros(_length(size), dtype=torch.uint8, device=device)
        if data is not None:
            self.bytes = data

    @classmethod
    def uninitialized(cls, count: int, size: int) -> tuple[list[PackedMask], np.ndarray]:
        """Allocate several masks on the CPU, to be written all at once.

        Their bits are undefined, except that those beyond n are zero.

        Args:
            count: number of masks.
            size: entries of each.

        Returns:
            The masks, and their bits as one array: uint32, (count, words).
        """
        data = torch.empty((count, _length(size)), dtype=torch.uint8)
        data[:, -8:] = 0
        return [cls(size, data=row) for row in data], data.numpy().view(np.uint32)

    @property
    def words(self) -> np.ndarray:
        """The bits of a mask on the CPU: uint64, (ceil(n / 64),)."""
        words: np.ndarray = self.bytes.numpy().view(np.uint64)
        return words

    def copy(self) -> PackedMask:
        """Copy the mask.

        Returns:
            A mask with the same bits in its own memory.
        """
        return PackedMask(self.size, data=self.bytes.clone())

    def write(self, start: int, mask: Tensor) -> None:
        """Overwrite consecutive entries.

        Args:
            start: index of the first entry, a multiple of 8.
            mask: the new entries, bool, 1-D.
        """
        if self.bytes.device.type != "cpu":
            self.write_on_device(start, mask)
            return
        packed = np.packbits(mask.cpu().numpy(), bitorder="little")
        self.bytes[start // 8 : start // 8 + len(packed)] = torch.from_numpy(packed)

    def write_on_device(self, start: int, mask: Tensor) -> None:
        """`write` in torch operations, for any device.

        Args:
            start: index of the first entry, a multiple of 8.
            mask: the new entries, bool, 1-D.
        """
        length = -(-mask.numel() // 8)
        padded = mask.new_zeros(length * 8)
        padded[: mask.numel()] = mask
        packed = (padded.view(-1, 8) * bit_weights(self.bytes.device)).sum(1, dtype=torch.uint8)
        self.bytes[start // 8 : start // 8 + length] = packed

    def fill(self) -> None:
        """Set all entries to true."""
        self.bytes.fill_(255)
        full_bytes, remaining = divmod(self.size, 8)
        if remaining:
            self.bytes[full_bytes] = (1 << remaining) - 1
        self.bytes[full_bytes + (remaining > 0) :] = 0

    def include(self, other: PackedMask) -> None:
        """Set the entries to true that are true in another mask.

        Args:
            other: a mask of the same size and device.
        """
        self.bytes |= other.bytes

    def count(self) -> Tensor:
        """Count the true entries.

        Returns:
            int64, 0-D, on the mask's device.
        """
        return compare(self, [None] * 3, self)[0]

    def unpacked(self) -> Tensor:
        """Unpack the mask.

        Returns:
            bool, (size,), on the mask's device.
        """
        shifts = torch.arange(8, dtype=torch.uint8, device=self.bytes.device)
        return (self.bytes[:, None] >> shifts & 1).bool().view(-1)[: self.size]


def _length(size: int) -> int:
    return max(1, -(-size // 64)) * 8


def compare(mask: PackedMask, others: Sequence[PackedMask | None], ever: PackedMask) -> Tensor:
    """Include a mask in `ever`, and count what it has in common with other masks.

    Args:
        mask: a mask of n entries.
        others: three masks of the same size: the previous, the first and a reference mask; None
            where there is none.
        ever: the union of all masks so far; changed in place.

    Returns:
        int64, (6,), on the masks' device: true entries of `mask`, in common with each of the
        others, of `ever`, and of the last of the others; 0 where there is no other mask. Does not
        wait for an accelerator.
    """
    if mask.bytes.device.type == "cpu":
        from deltalens.numerics import compiled_masks

        absent = np.empty(0, dtype=np.uint64)
        previous, first, last = (absent if other is None else other.words for other in others)
        counts = torch.empty(COMPARED_COUNTS, dtype=torch.int64)
        compiled_masks.compare(mask.words, previous, first, last, ever.words, counts.numpy())
        return counts
    return compare_on_device(mask, others, ever)


def compare_on_device(
    mask: PackedMask, others: Sequence[PackedMask | None], ever: PackedMask
) -> Tensor:
    """`compare` in torch operations, for any device.

    Args:
        mask: as in `compare`.
        others: as in `compare`.
        ever: as in `compare`.

    Returns:
        As `compare`.
    """
    ever.bytes |= mask.bytes
    last = others[-1]
    to_count = [
        mask.bytes,
        *(None if other is None else mask.bytes & other.bytes for other in others),
        ever.bytes,
        None if last is None else last.bytes,
    ]
    ones = ones_in_byte(mask.bytes.device)
    zero = ones.new_zeros(())
    return torch.stack([zero if bits is None else ones[bits.long()].sum() for bits in to_count])


def jaccard(common: float, size_a: float, size_b: float) -> float:
    """Compute the Jaccard index of two sets, |A and B| / |A or B|.

    Args:
        common: |A and B|.
        size_a: |A|.
        size_b: |B|.

    Returns:
        The index, from 0 to 1; 1 if both sets are empty.
    """
    union = size_a + size_b - common
    return common / union if union else 1.0


def containment(common: float, size_a: float) -> float:
    """Compute the share of a set A that is also in B, |A and B| / |A|.

    Args:
        common: |A and B|.
        size_a: |A|.

    Returns:
        The share, from 0 to 1; 1 if A is empty.
    """
    return common / size_a if size_a else 1.0


def expected_jaccard(size_a: float, size_b: float, entries: int) -> float:
    """Compute the Jaccard index expected of two random masks, with E |A and B| = |A| |B| / n.

    Args:
        size_a: |A|.
        size_b: |B|.
        entries: n, the number of entries of each mask.

    Returns:
        The index, from 0 to 1; 1 if there are no entries.
    """
    return jaccard(size_a * size_b / entries, size_a, size_b) if entries else 1.0
