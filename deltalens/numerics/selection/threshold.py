"""The magnitude at a single rank of a tensor in memory, such as GMT's T_k."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import CHUNK, PART, integer_of, magnitude_bits
from deltalens.numerics.kernels import count_true, less, take
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.bracket import around
from deltalens.numerics.selection.find import find_thresholds, parts_of
from deltalens.numerics.workers import Each, in_order

__all__ = ["threshold_of"]

_SAMPLE = 1 << 16
_FEWEST = 1 << 18
"""Below so many entries a histogram is as quick."""


def threshold_of(values: Tensor, rank: int, each: Each = in_order) -> int:
    """The magnitude bits of the entry at a rank (0-based, ascending magnitude), exactly.

    Args:
        values: contiguous, any shape; fp16, bf16, fp32 or fp64, without NaN.
        rank: from 0 to n - 1. GMT's T_k (Eq. 3) is at rank n - k.
        each: how to visit the parts (`workers.workers()` visits them on all cores).

    Raises:
        IndexError: the rank is outside the tensor.
    """
    flat = values.detach().view(-1)
    if not 0 <= rank < flat.numel():
        raise IndexError(f"rank {rank} of {flat.numel()} entries")
    if flat.numel() >= _FEWEST:
        found = _bracketed(flat, rank, each)
        if found is not None:
            return found
    return find_thresholds(parts_of({"": flat}), [rank], each=each)[0]


def _bracketed(flat: Tensor, rank: int, each: Each) -> int | None:
    """The bits at the rank; None if the bracket missed, or would hold too much (many ties)."""
    low, high = _guess(flat, rank)
    if high - low < 2:
        return None
    scratch, step = Scratch(), max(1, CHUNK * 4 // flat.element_size())

    def visit(start: int) -> tuple[int, list[Tensor]]:
        below, inside = 0, []
        for first in range(start, min(start + PART, flat.numel()), step):
            piece = flat[first : min(first + step, start + PART)]
            size, device = piece.numel(), flat.device
            bits = scratch.get("bits", integer_of(flat.dtype), size, device)
            magnitude_bits(piece, out=bits)
            under = less(bits, low, out=scratch.get("under", torch.bool, size, device))
            below += count_true(under)
            within = less(bits, high, out=scratch.get("within", torch.bool, size, device))
            inside.append(take(bits, within.logical_xor_(under)))
        return below, inside

    below, gathered = 0, []
    for count, parts in each(visit, range(0, flat.numel(), PART)):
        below += count
        gathered += parts
    candidates = torch.cat(gathered)
    if not below <= rank < below + candidates.numel():
        return None
    return _at(candidates, rank - below)


def _at(candidates: Tensor, rank: int) -> int:
    if candidates.device.type == "cpu":
        return int(np.partition(candidates.numpy(), rank)[rank])
    return int(candidates.kthvalue(rank + 1).values)


def _guess(flat: Tensor, rank: int) -> tuple[int, int]:
    """From evenly spaced entries: bits below and above the rank, three standard errors away."""
    sample = flat[:: max(1, flat.numel() // _SAMPLE)].contiguous()
    bits = magnitude_bits(sample).cpu().numpy()
    first, last = around(rank, flat.numel(), bits.size)
    ends = [place for place in (first, last) if 0 <= place < bits.size]
    if ends:
        bits.partition(ends)
    low = int(bits[first]) if first >= 0 else 0
    high = int(bits[last]) + 1 if last < bits.size else int(np.iinfo(bits.dtype).max)
    return low, high
