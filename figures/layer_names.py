"""Names of blocks, and of tensors outside them, as a picture has room for them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["short_names", "ticks_for"]


def short_names(names: Sequence[str]) -> list[str]:
    """Leave out of names their most common beginning and `.weight`; of a long one all but the end.

    Args:
        names: of one axis.

    Returns:
        As many names.
    """
    short = [name.removesuffix(".weight") for name in names]
    while True:
        heads = [name.partition(".")[0] for name in short]
        head = max(heads, key=heads.count) + "."
        rests = [name.removeprefix(head) for name in short]
        if rests == short or len(set(rests)) < len(rests) or any(r[0].isdigit() for r in rests):
            return [name if len(name) <= 24 else f"…{name[-23:]}" for name in short]
        short = rests


def ticks_for(names: Sequence[str], inches: float) -> tuple[list[int], list[str]]:
    """Choose the rows of a picture whose names have room.

    Args:
        names: of all rows.
        inches: the height of the axis.

    Returns:
        Indices of rows, and their short names.
    """
    every = -(-len(names) // max(1, int(6 * inches)))
    shown, short = [*range(0, len(names), every)], short_names(names)
    return shown, [short[index] for index in shown]
