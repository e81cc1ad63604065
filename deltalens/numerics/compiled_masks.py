"""Loops over weights and their masks, compiled by numba, for the CPU.

The bits of a mask are unsigned little-endian words: entry i is bit i % 64 of word i // 64, or bit i
% 32 of word i // 32. Import this module where it is used, because numba takes a moment to load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, uint32

from deltalens.numerics.compiling import compiled

__all__ = [
    "compare",
    "copy_changed",
    "copy_inside",
    "popcount",
    "restore_outside",
    "set_bits",
    "zero_outside",
]

_STEP = 4096
"""Entries that one loop and then the next visits, while they are in the nearest cache."""

_loop = compiled()


@_loop
def popcount(word: Any) -> Any:
    """Count the bits that are set in a word; the compiler recognizes the formula as one
    instruction.

    Args:
        word: uint64.

    Returns:
        The number of set bits, uint64.
    """
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@_loop
def _popcount_all(words: Any) -> Any:
    total = np.uint64(0)
    for index in range(words.size):
        total += popcount(words[index])
    return total


@_loop
def _popcount_common(words: Any, others: Any) -> Any:
    total = np.uint64(0)
    for index in range(others.size):
        total += popcount(words[index] & others[index])
    return total


@_loop
def compare(words: Any, previous: Any, first: Any, reference: Any, ever: Any, counts: Any) -> None:
    """Include a mask in `ever`, and count the bits in common with other masks.

    Args:
        words: the mask, uint64, (W,).
        previous: another mask, (W,), or of length 0 if there is none.
        first: likewise.
        reference: likewise.
        ever: the union of all masks so far, changed in place, (W,).
        counts: written: int64, (6,): bits set in `words`, in common with each of the three others,
            set in the new `ever`, and set in `reference`.
    """
    counts[:] = 0
    for start in range(0, words.size, _STEP):
        stop = start + _STEP
        chunk, ever_chunk = words[start:stop], ever[start:stop]
        for index in range(chunk.size):
            ever_chunk[index] |= chunk[index]
        counts[0] += np.int64(_popcount_all(chunk))
        counts[1] += np.int64(_popcount_common(chunk, previous[start:stop]))
        counts[2] += np.int64(_popcount_common(chunk, first[start:stop]))
        counts[3] += np.int64(_popcount_common(chunk, reference[start:stop]))
        counts[4] += np.int64(_popcount_all(ever_chunk))
        counts[5] += np.int64(_popcount_all(reference[start:stop]))


@_loop
def set_bits(words: Any, indices: Any, keys: Any, least: Any) -> None:
    """Set the bits of those entries whose magnitude bits are at least `least`.

    Args:
        words: the mask, changed in place, uint64, (W,).
        indices: flat indices of entries, int64, (n,).
        keys: their magnitude bits, signed integers, (n,).
        least: the bound, int64.
    """
    for entry in range(indices.size):
        if keys[entry] >= least:
            index = np.uint64(indices[entry])
            words[index >> np.uint64(6)] |= np.uint64(1) << (index & np.uint64(63))


@_loop
def zero_outside(bits: Any, kept: Any) -> None:
    """Set every entry outside a mask to zero.

    Args:
        bits: the entries as integers, changed in place, (n,).
        kept: bits of the mask, uint32, (n / 32 or more,).
    """
    for word in range((bits.size + 31) // 32):
        entries, kept_bits = bits[word * 32 : word * 32 + 32], kept[word]
        for bit in range(entries.size):
            keep = uint32(kept_bits >> uint32(bit)) & uint32(1)
            entries[bit] = entries[bit] if keep else 0


@_loop
def restore_outside(bits: Any, before: Any, kept: Any) -> None:
    """Restore the original value of every entry outside a mask.

    Args:
        bits: the entries as integers, changed in place, (n,).
        before: the original entries as integers, (n,).
        kept: bits of the mask, uint32, (n / 32 or more,).
    """
    for word in range((bits.size + 31) // 32):
        start = word * 32
        entries, originals, kept_bits = (
            bits[start : start + 32],
            before[start : start + 32],
            kept[word],
        )
        for bit in range(entries.size):
            keep = uint32(kept_bits >> uint32(bit)) & uint32(1)
            entries[bit] = entries[bit] if keep else originals[bit]


@_loop
def copy_inside(bits: Any, kept: Any, out: Any) -> None:
    """Copy the entries inside a mask, and write zero for all others.

    Args:
        bits: the entries as integers, (n,).
        kept: bits of the mask, uint32, (n / 32 or more,).
        out: written, integers, (n,).
    """
    for word in range((bits.size + 31) // 32):
        start = word * 32
        entries, target, kept_bits = bits[start : start + 32], out[start : start + 32], kept[word]
        if entries.size == 32:
            for bit in range(32):
                keep = uint32(kept_bits >> uint32(bit)) & uint32(1)
                target[bit] = entries[bit] if keep else 0
        else:
            for bit in range(entries.size):
                keep = uint32(kept_bits >> uint32(bit)) & uint32(1)
                target[bit] = entries[bit] if keep else 0


@_loop
def copy_changed(bits: Any, before: Any, kept: Any, out: Any) -> None:
    """Update the result of `copy_inside` to another mask, touching only entries that change.

    Args:
        bits: the entries as integers, (n,).
        before: bits of the mask that `out` was written with, uint32, (W,), zero beyond n.
        kept: bits of the new mask, uint32, (W,), zero beyond n.
        out: changed in place, integers, (n,).
    """
    for word in range(kept.size):
        changed = uint32(before[word] ^ kept[word])
        while changed:
            lowest = int32(popcount(np.uint64(uint32(uint32(changed - uint32(1)) & ~changed))))
            index = word * 32 + lowest
            keep = uint32(kept[word] >> uint32(lowest)) & uint32(1)
            out[index] = bits[index] if keep else 0
            changed = uint32(changed & uint32(changed - uint32(1)))
