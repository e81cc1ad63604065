"""Masks of earlier steps, and the overlap of a new mask with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from deltalens.errors import DeltaLensError
from deltalens.gradients import Gradient
from deltalens.numerics.masks import PackedMask, compare, containment, expected_jaccard, jaccard

__all__ = ["History", "LearnedMasks", "packed_reference"]

_AGAINST = ("previous", "first", "reference")


class History:
    """Earlier masks of one tensor at one ratio, kept for comparison. Memory: three bits per entry.

    Args:
        ever: an empty mask in which all entries are marked that any mask keeps.
        reference: a fixed mask to compare with; None if there is none.
    """

    def __init__(self, ever: PackedMask, reference: PackedMask | None) -> None:
        self.ever = ever
        self.kept = [0, 0]
        """Number of entries in the previous mask and in the first."""
        self._masks: list[PackedMask | None] = [None, None, reference]

    def comparable(self, mask: PackedMask) -> bool:
        """Tell whether a new mask can be compared with the earlier ones.

        Args:
            mask: the new mask.

        Returns:
            True if the mask has the same size and device.
        """
        return mask.size == self.ever.size and mask.bytes.device == self.ever.bytes.device

    def others(self) -> list[PackedMask | None]:
        """Return the masks that a new one is compared with.

        Returns:
            The previous, the first and the reference mask; None where there is none.
        """
        return list(self._masks)

    def record(self, entries: int, mask: PackedMask, row: Sequence[int]) -> dict[str, float]:
        """Add a mask, and compute how it overlaps with the others.

        Args:
            entries: number of entries of the whole tensor.
            mask: the mask of a logged step.
            row: what `masks.compare` counted, summed over ranks.

        Returns:
            Column name -> value: `kept` and `coverage`, and for each other mask the Jaccard index,
            the containment, and the Jaccard index expected by chance.
        """
        kept, *common, ever_kept, reference = row
        columns: dict[str, float] = {
            "kept": kept,
            "coverage": ever_kept / entries if entries else math.nan,
        }
        sizes = [*self.kept, reference]
        for against, other, size, both in zip(_AGAINST, self._masks, sizes, common, strict=True):
            if other is not None:
                columns[f"jaccard_{against}"] = jaccard(both, kept, size)
                columns[f"containment_{against}"] = containment(both, kept)
                columns[f"chance_{against}"] = expected_jaccard(kept, size, entries)
        if self._masks[1] is None:
            self._masks[1], self.kept[1] = mask, kept
        self._masks[0], self.kept[0] = mask, kept
        return columns


class LearnedMasks:
    """Compare learned masks of weights with those of the previous logged step and of the first.

    Memory: three bits per entry.

    Args:
        masks: returns the current masks by layer; they are kept, and must not change.
    """

    def __init__(self, masks: Callable[[], Mapping[str, PackedMask]]) -> None:
        self._masks = masks
        self._histories: dict[str, History] = {}

    def rows(self, step: int) -> list[dict[str, float | str]]:
        """Build the rows of the table `learned` for a logged step.

        Args:
            step: the step's number.

        Returns:
            One row per layer, as column name -> value.
        """
        rows: list[dict[str, float | str]] = []
        for layer, mask in self._masks().items():
            if layer not in self._histories:
                ever = PackedMask(mask.size, mask.bytes.device)
                self._histories[layer] = History(ever, None)
            history = self._histories[layer]
            kept, previous, first, _, ever_kept, _ = row = [
                int(n) for n in compare(mask, history.others(), history.ever)
            ]
            flipped = {
                f"flipped_{against}": kept + size - 2 * both
                for against, other, size, both in zip(
                    _AGAINST, history.others()[:2], history.kept, (previous, first), strict=False
                )
                if other is not None
            }
            columns = history.record(mask.size, mask, row)
            del columns["coverage"]
            ever_share = {"ever_kept": ever_kept / mask.size}
            key_columns: dict[str, float | str] = {
                "step": step,
                "layer": layer,
                "entries": mask.size,
            }
            rows.append({**key_columns, **columns, **flipped, **ever_share})
        return rows


def packed_reference(reference: Tensor | None, gradient: Gradient) -> PackedMask | None:
    """Pack a reference mask, checking that it fits a gradient.

    Args:
        reference: a bool mask of any shape; None if there is none for this gradient.
        gradient: the gradient whose masks are compared with it.

    Returns:
        The mask, one bit per entry, on the gradient's device; None without a reference.

    Raises:
        DeltaLensError: the numbers of entries differ.
    """
    if reference is None:
        return None
    if reference.numel() != gradient.local.numel():
        raise DeltaLensError(
            f"{gradient.name!r}: the reference mask has {reference.numel():,} entries, the "
            f"gradient {gradient.local.numel():,}"
        )
    device = gradient.local.device
    packed = PackedMask(reference.numel(), device)
    packed.write(0, reference.detach().to(device).reshape(-1).bool())
    return packed
