"""Masks as one bit an entry, and how much two of them have in common."""

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
"""How many numbers `compare` gives."""


class PackedMask:
    """A mask of n entries in n / 8 bytes, on any device; made all false.

    Args:
        size: entries.
        device: where the bits live.
        held: the bytes themselves, uint8 and as long as they would be made; zero beyond n.
    """

    def __init__(
        self, size: int, device: torch.device | str = "cpu", held: Tensor | None = None
    ) -> None:
        self.size = size
        self.bytes = torch.zeros(_length(size), dtype=torch.uint8, device=device)
        if held is not None:
            self.bytes = held

    @classmethod
    def several(cls, count: int, size: int) -> tuple[list[PackedMask], np.ndarray]:
        """Masks on the CPU, to be written all at once, and their bits: uint32, (count, words).

        What they hold is undefined, but for the bits beyond n, which are zero.
        """
        held = torch.empty((count, _length(size)), dtype=torch.uint8)
        held[:, -8:] = 0
        return [cls(size, held=row) for row in held], held.numpy().view(np.uint32)

    @property
    def words(self) -> np.ndarray:
        """The bits themselves, if they are on the CPU: uint64, (ceil(n / 64),)."""
        found: np.ndarray = self.bytes.numpy().view(np.uint64)
        return found

    def copy(self) -> PackedMask:
        """A mask of its own with the same bits."""
        return PackedMask(self.size, held=self.bytes.clone())

    def write(self, start: int, mask: Tensor) -> None:
        """Set the entries from `start` (a multiple of 8) on to a bool mask, 1-D."""
        if self.bytes.device.type != "cpu":
            self.write_on_device(start, mask)
            return
        packed = np.packbits(mask.cpu().numpy(), bitorder="little")
        self.bytes[start // 8 : start // 8 + len(packed)] = torch.from_numpy(packed)

    def write_on_device(self, start: int, mask: Tensor) -> None:
        """`write`, in torch, where the mask is."""
        length = -(-mask.numel() // 8)
        padded = mask.new_zeros(length * 8)
        padded[: mask.numel()] = mask
        packed = (padded.view(-1, 8) * bit_weights(self.bytes.device)).sum(1, dtype=torch.uint8)
        self.bytes[start // 8 : start // 8 + length] = packed

    def fill(self) -> None:
        """Make all entries true."""
        self.bytes.fill_(255)
        whole, rest = divmod(self.size, 8)
        if rest:
            self.bytes[whole] = (1 << rest) - 1
        self.bytes[whole + (rest > 0) :] = 0

    def include(self, other: PackedMask) -> None:
        """Make true what is true in the other."""
        self.bytes |= other.bytes

    def count(self) -> Tensor:
        """How many entries are true: int64, (), where the mask is."""
        return compare(self, [None] * 3, self)[0]

    def unpacked(self) -> Tensor:
        """The mask itself: bool, (size,)."""
        shifts = torch.arange(8, dtype=torch.uint8, device=self.bytes.device)
        return (self.bytes[:, None] >> shifts & 1).bool().view(-1)[: self.size]


def _length(size: int) -> int:
    return max(1, -(-size // 64)) * 8


def compare(mask: PackedMask, others: Sequence[PackedMask | None], ever: PackedMask) -> Tensor:
    """Include a mask in `ever`, and count what it has in common with others.

    Args:
        mask: of n entries.
        others: three: the previous, the first and a reference mask, each if there is one.
        ever: what was true in any mask so far; changed in place.

    Returns:
        int64, (6,), on the masks' device: entries true in `mask`, in it and each of the others, in
        `ever`, and in the last of the others; 0 where there is no other. A GPU is not waited for.
    """
    if mask.bytes.device.type == "cpu":
        from deltalens.numerics import compiled_masks

        none = np.empty(0, dtype=np.uint64)
        previous, first, last = (none if other is None else other.words for other in others)
        counts = torch.empty(COMPARED_COUNTS, dtype=torch.int64)
        compiled_masks.compare(mask.words, previous, first, last, ever.words, counts.numpy())
        return counts
    return compare_on_device(mask, others, ever)


def compare_on_device(
    mask: PackedMask, others: Sequence[PackedMask | None], ever: PackedMask
) -> Tensor:
    """`compare`, in torch, where the masks are."""
    ever.bytes |= mask.bytes
    last = others[-1]
    spec = [
        mask.bytes,
        *(None if other is None else mask.bytes & other.bytes for other in others),
        ever.bytes,
        None if last is None else last.bytes,
    ]
    ones = ones_in_byte(mask.bytes.device)
    none_there = ones.new_zeros(())
    return torch.stack([none_there if one is None else ones[one.long()].sum() for one in spec])


def jaccard(both: float, one: float, other: float) -> float:
    """|A and B| / |A or B|; 1 where both are empty."""
    union = one + other - both
    return both / union if union else 1.0


def containment(both: float, one: float) -> float:
    """|A and B| / |A|: the share of A that is in B; 1 where A is empty."""
    return both / one if one else 1.0


def expected_jaccard(one: float, other: float, size: int) -> float:
    """The Jaccard index to expect of two masks of these sizes drawn at random: with the expected
    |A and B| = |A| |B| / n."""
    return jaccard(one * other / size, one, other) if size else 1.0
