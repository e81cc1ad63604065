"""The masks of earlier steps, and what a new one has in common with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from deltalens.numerics.masks import PackedMask, compare, containment, expected_jaccard, jaccard

__all__ = ["History", "LearnedMasks"]

_AGAINST = ("previous", "first", "reference")


class History:
    """The masks of one tensor at one ratio that later ones are compared with: three bits an
    entry."""

    def __init__(self, ever: PackedMask, reference: PackedMask | None) -> None:
        self.ever = ever
        self.kept = [0, 0]
        """Entries in the previous and in the first mask."""
        self._masks: list[PackedMask | None] = [None, None, reference]

    def fits(self, mask: PackedMask) -> bool:
        """Whether a new mask can be compared with it: of a tensor of this size, on this device."""
        return mask.size == self.ever.size and mask.bytes.device == self.ever.bytes.device

    def others(self) -> list[PackedMask | None]:
        """What a new mask is compared with: the previous, the first and the reference mask."""
        return list(self._masks)

    def take(self, entries: int, mask: PackedMask, row: Sequence[int]) -> dict[str, float]:
        """A logged step is over: the columns that tell how its mask compares with others."""
        kept, *common, ever, reference = row
        columns: dict[str, float] = {
            "kept": kept,
            "coverage": ever / entries if entries else math.nan,
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
    """Compares the masks of weights that a method learns with those of the logged step before, and
    with the first. Memory: three bits an entry.

    Args:
        masks: gives the masks of this moment, by layer; they are kept, and must not change.
    """

    def __init__(self, masks: Callable[[], Mapping[str, PackedMask]]) -> None:
        self._masks = masks
        self._histories: dict[str, History] = {}

    def rows(self, step: int) -> list[dict[str, float | str]]:
        """A row for each layer, as the table `learned` has them."""
        found: list[dict[str, float | str]] = []
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
            columns = history.take(mask.size, mask, row)
            del columns["coverage"]
            ever_share = {"ever_kept": ever_kept / mask.size}
            head: dict[str, float | str] = {"step": step, "layer": layer, "entries": mask.size}
            found.append({**head, **columns, **flipped, **ever_share})
        return found
