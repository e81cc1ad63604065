"""Loops over weights and their masks, compiled by numba; for the CPU.

Bits of a mask are unsigned words, little-endian: entry i is bit i % 64 of word i // 64, or bit
i % 32 of word i // 32. Import this module where it is used: numba takes a moment to load.
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
"""Entries visited by one loop and then by the next, while they are in the nearest cache."""

_loop = compiled()


@_loop
def popcount(word: Any) -> Any:
    """How many bits of a word are set; the compiler knows this sum, and uses one instruction."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@_loop
def _popcount_all(words: Any) -> Any:
    found = np.uint64(0)
    for place in range(words.size):
        found += popcount(words[place])
    return found


@_loop
def _popcount_common(words: Any, others: Any) -> Any:
    found = np.uint64(0)
    for place in range(others.size):
        found += popcount(words[place] & others[place])
    return found


@_loop
def compare(words: Any, previous: Any, first: Any, reference: Any, ever: Any, counts: Any) -> None:
    """Include a mask in `ever`, and count the bits in common with others.

    Args:
        words: the mask, uint64, (W,).
        previous, first, reference: others, (W,), or of length 0 where there is none.
        ever: changed in place, (W,).
        counts: written: int64, (6,): bits set in `words`, in it and each of the three others, in
            the new `ever`, and in `reference`.
    """
    counts[:] = 0
    for start in range(0, words.size, _STEP):
        stop = start + _STEP
        some, all_time = words[start:stop], ever[start:stop]
        for place in range(some.size):
            all_time[place] |= some[place]
        counts[0] += np.int64(_popcount_all(some))
        counts[1] += np.int64(_popcount_common(some, previous[start:stop]))
        counts[2] += np.int64(_popcount_common(some, first[start:stop]))
        counts[3] += np.int64(_popcount_common(some, reference[start:stop]))
        counts[4] += np.int64(_popcount_all(all_time))
        counts[5] += np.int64(_popcount_all(reference[start:stop]))


@_loop
def set_bits(words: Any, places: Any, inside: Any, least: Any) -> None:
    """Set the bits at those places whose magnitude bits are at least `least`.

    words: uint64, (W,). places: int64, (n,). inside: signed integers, (n,). least: int64.
    """
    for entry in range(places.size):
        if inside[entry] >= least:
            place = np.uint64(places[entry])
            words[place >> np.uint64(6)] |= np.uint64(1) << (place & np.uint64(63))


@_loop
def zero_outside(bits: Any, kept: Any) -> None:
    """Make zero every entry that is not in a mask.

    bits: integers, (n,). kept: bits of the mask: uint32, (n / 32 or more,).
    """
    for word in range((bits.size + 31) // 32):
        part, marks = bits[word * 32 : word * 32 + 32], kept[word]
        for place in range(part.size):
            inside = uint32(marks >> uint32(place)) & uint32(1)
            part[place] = part[place] if inside else 0


@_loop
def restore_outside(bits: Any, before: Any, kept: Any) -> None:
    """Put back to `before` every entry that is not in a mask.

    bits, before: integers, (n,). kept: bits of the mask: uint32, (n / 32 or more,).
    """
    for word in range((bits.size + 31) // 32):
        start = word * 32
        part, old, marks = bits[start : start + 32], before[start : start + 32], kept[word]
        for place in range(part.size):
            inside = uint32(marks >> uint32(place)) & uint32(1)
            part[place] = part[place] if inside else old[place]


@_loop
def copy_inside(bits: Any, kept: Any, out: Any) -> None:
    """Copy the entries that are in a mask; all others become zero.

    bits, out: integers, (n,). kept: bits of the mask: uint32, (n / 32 or more,).
    """
    for word in range((bits.size + 31) // 32):
        start = word * 32
        part, target, marks = bits[start : start + 32], out[start : start + 32], kept[word]
        if part.size == 32:
            for place in range(32):
                inside = uint32(marks >> uint32(place)) & uint32(1)
                target[place] = part[place] if inside else 0
        else:
            for place in range(part.size):
                inside = uint32(marks >> uint32(place)) & uint32(1)
                target[place] = part[place] if inside else 0


@_loop
def copy_changed(bits: Any, before: Any, kept: Any, out: Any) -> None:
    """`copy_inside` into what it made for another mask: only entries that differ are touched.

    bits, out: integers, (n,). before, kept: bits of the masks: uint32, (W,), zero beyond n.
    """
    for word in range(kept.size):
        changed = uint32(before[word] ^ kept[word])
        while changed:
            first = int32(popcount(np.uint64(uint32(uint32(changed - uint32(1)) & ~changed))))
            place = word * 32 + first
            inside = uint32(kept[word] >> uint32(first)) & uint32(1)
            out[place] = bits[place] if inside else 0
            changed = uint32(changed & uint32(changed - uint32(1)))
