"""Loops over weights and their masks, compiled by numba; for the CPU (see `compiled`).

Bits of a mask are unsigned words of 32 bits, little-endian: entry i is bit i % 32 of word i // 32.
"""

from __future__ import annotations

from typing import Any

from numba import int32, uint32

from deltalens.numerics.compiling import compiled

__all__ = ["copy_beside", "copy_changed", "mark_above"]

_loop = compiled()


@_loop
def _key(raw: Any, clear: Any, flag: Any) -> Any:
    size = raw & clear
    return -size if raw & flag else size


@_loop
def _ones(word: Any) -> Any:
    """How many bits of a word of 32 bits are set; the compiler knows this sum."""
    word = uint32(word)
    word = uint32(word - ((word >> uint32(1)) & uint32(0x55555555)))
    word = uint32((word & uint32(0x33333333)) + ((word >> uint32(2)) & uint32(0x33333333)))
    word = uint32((word + (word >> uint32(4))) & uint32(0x0F0F0F0F))
    return int32(uint32(word * uint32(0x01010101)) >> uint32(24))


@_loop
def mark_above(
    bits: Any, rule: Any, low: Any, high: Any, words: Any, places: Any, inside: Any
) -> Any:
    """Mark the entries whose key is at least `high`, and gather those with a key in [low, high).

    The key of a number is its magnitude bits; negative, where the flag is set in its bits.

    Args:
        bits: the entries as signed integers, (n,).
        rule: what clears the sign, the flag (the sign bit to rank by value, 0 to rank by
            magnitude), and the magnitude bits of infinity: of the dtype of `bits`, (3,).
        low, high: (1,), of the dtype of `bits`; equal where nothing is to be gathered.
        words: the marks, written: uint32, (n / 32 or more,).
        places, inside: flat indices (int64) and keys (the dtype of `bits`) of what was gathered.

    Returns:
        How many were marked; how many are inside (gathered only while there was room for one
        more); whether there is a NaN.
    """
    clear, flag, infinity = rule[0], rule[1], rule[2]
    least, enough = low[0], high[0]
    marked: Any = 0
    found: Any = 0
    end: Any = 0
    top = bits.dtype.type(0)
    for word in range((bits.size + 31) // 32):
        start = word * 32
        part = bits[start : start + 32]
        marks, near = uint32(0), uint32(0)
        if part.size == 32:
            # A length known beforehand, and narrow numbers: it becomes vector instructions.
            for place in range(32):
                key = _key(part[place], clear, flag)
                marks = uint32(marks | uint32(uint32(key >= enough) << uint32(place)))
                near = uint32(near | uint32(uint32(key >= least) << uint32(place)))
                top = max(top, part[place] & clear)
        else:
            for place in range(part.size):
                key = _key(part[place], clear, flag)
                marks = uint32(marks | uint32(uint32(key >= enough) << uint32(place)))
                near = uint32(near | uint32(uint32(key >= least) << uint32(place)))
                top = max(top, part[place] & clear)
        words[word] = marks
        near = uint32(near & ~marks)
        marked, found = marked + _ones(marks), found + _ones(near)
        while near and end + 1 < places.size:
            first = _ones(uint32(near - uint32(1)) & ~near)
            places[end] = start + first
            inside[end] = _key(part[first], clear, flag)
            end += 1
            near = uint32(near & uint32(near - uint32(1)))
    return marked, found, top > infinity


@_loop
def copy_beside(bits: Any, kept: Any, out: Any) -> None:
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
    """`copy_beside` into what it made for another mask: only entries that differ are touched.

    bits, out: integers, (n,). before, kept: bits of the masks: uint32, (W,), zero beyond n.
    """
    for word in range(kept.size):
        changed = uint32(before[word] ^ kept[word])
        while changed:
            first = _ones(uint32(changed - uint32(1)) & ~changed)
            place = word * 32 + first
            inside = uint32(kept[word] >> uint32(first)) & uint32(1)
            out[place] = bits[place] if inside else 0
            changed = uint32(changed & uint32(changed - uint32(1)))
