"""A random draw of exact size, in one pass: the masks are made before the last entry is known.

Hashes are uniform, so the last entry's lies close to its share of all numbers. What lies below is
drawn, what lies above is not, and the few in between are settled once all have been counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from deltalens.numerics.hashing import hashed_range, name_key
from deltalens.numerics.kernels import count_true, less, less_equal, take_at, where_true
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.find import Boundary
from deltalens.numerics.selection.windows import SIGMAS, Near, hash_window, up_to
from deltalens.numerics.workers import Each, in_order

__all__ = ["draw"]

_PART = 1 << 19


class _Between(NamedTuple):
    """Entries of one tensor that are not settled yet."""

    name: str
    positions: Tensor
    hashes: Tensor


def draw(
    sizes: Mapping[str, int],
    count: int,
    seed: int,
    each: Each = in_order,
    device: torch.device | str = "cpu",
) -> tuple[Boundary, dict[str, Tensor]]:
    """The first `count` entries of a unit in the order by hash (`order.find_random_boundaries`).

    Memory: a byte per entry.

    Args:
        sizes: the unit's tensors: name -> entries.
        count: how many are drawn: more than none, fewer than all.
        seed: whose randomness.
        each: how to visit the parts.
        device: where the masks are made.

    Returns:
        The boundary, and for every tensor a mask of what was drawn: bool, 1-D.
    """
    total = sum(sizes.values())
    masks = {
        name: torch.empty(size, dtype=torch.bool, device=device) for name, size in sizes.items()
    }
    parts = [
        (name, start, min(start + _PART, size))
        for name, size in sizes.items()
        for start in range(0, size, _PART)
    ]
    scratch, sigmas = Scratch(), SIGMAS
    while True:
        low, high = hash_window(count - 1, total, sigmas)

        def visit(
            part: tuple[str, int, int], low: int = low, high: int = high
        ) -> tuple[int, list[_Between]]:
            return _draw_part(masks, part, seed, (low, high), scratch)

        near, between = Near(), list[_Between]()
        for below, some in each(visit, parts):
            near.below += below
            between += some
        near.inside = [(name, hashes) for name, _, hashes in between]
        tie = near.at(count - 1)
        if tie is not None:
            break
        sigmas *= 16
    for name, positions, hashes in between:
        masks[name][positions] = up_to(tie, name)(
            hashes, tie.hash, out=torch.empty_like(hashes, dtype=torch.bool)
        )
    return Boundary(0, tie), masks


def _draw_part(
    masks: Mapping[str, Tensor],
    part: tuple[str, int, int],
    seed: int,
    window: tuple[int, int],
    scratch: Scratch,
) -> tuple[int, list[_Between]]:
    name, at, stop = part
    mask, below, between = masks[name], 0, []
    for hashes in hashed_range(at, stop, name_key(seed, name), mask.device, scratch):
        drawn = mask[at : at + hashes.numel()]
        under = scratch.get("under", torch.bool, hashes.numel(), mask.device)
        less_equal(hashes, window[1], out=drawn)
        less(hashes, window[0], out=under)
        below += count_true(under)
        positions = where_true(under.logical_xor_(drawn))
        if positions.numel():
            between.append(_Between(name, positions + at, take_at(hashes, positions)))
        at += hashes.numel()
    return below, between
