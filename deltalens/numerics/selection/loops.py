"""Loops that numpy and torch have no single pass for, compiled by numba: a visit on the CPU.

Each takes a whole tensor in one call and lets go of the interpreter's lock, so that two threads do
not wait for one another. Import this module where it is used: numba takes a moment to load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, uint32

from deltalens.numerics.compiled_masks import popcount
from deltalens.numerics.compiling import compiled

__all__ = ["clear_at", "clear_like", "collect", "mark", "mark_above", "octaves", "scan", "shrink"]

_STEP = 4096
"""Entries visited by one loop and then by the next, while they are in the nearest cache."""

_PREFIX = np.uint64(0x7FFF)
_16, _32, _48 = np.uint64(16), np.uint64(32), np.uint64(48)
_ONE = np.uint32(1)

_loop = compiled()
_sum_loop = compiled(fastmath={"reassoc", "contract"})


@_sum_loop
def _sums(values: Any) -> Any:
    total, squares, zeros = 0.0, 0.0, 0
    for place in range(values.size):
        value = np.float64(values[place])
        total += abs(value)
        squares += value * value
        zeros += value == 0.0
    return total, squares, zeros


@_loop
def _range(bits: Any, shift: Any) -> Any:
    """The least prefix above 0, less one, and the greatest."""
    least, greatest = uint32(0xFFFFFFFF), uint32(0)
    for place in range(bits.size):
        prefix = uint32((bits[place] >> shift) & 0x7FFF)
        least = min(least, uint32(prefix - uint32(1)))
        greatest = max(greatest, prefix)
    return least, greatest


@_loop
def _count_16(words: Any, low: Any, high: Any) -> None:
    for place in range(words.size):
        word = words[place]
        low[word & _PREFIX] += _ONE
        high[(word >> _16) & _PREFIX] += _ONE
        low[(word >> _32) & _PREFIX] += _ONE
        high[(word >> _48) & _PREFIX] += _ONE


@_loop
def _count_32(words: Any, low: Any, high: Any) -> None:
    empty = 0
    for place in range(words.size):
        word = words[place]
        # Rows of zeros are common, and equal neighbors would wait for each other.
        if word == 0:
            empty += 1
        else:
            low[(word >> _16) & _PREFIX] += _ONE
            high[(word >> _48) & _PREFIX] += _ONE
    low[0] += np.uint32(empty)
    high[0] += np.uint32(empty)


@_loop
def _count_64(words: Any, low: Any) -> None:
    for place in range(words.size):
        low[(words[place] >> _48) & _PREFIX] += _ONE


@_loop
def scan(words: Any, bits: Any, values: Any, tables: Any) -> Any:
    """Count magnitudes by their leading 15 bits, and add them up.

    Args:
        words: the entries, as many to a word as fit: uint64, (n / entries a word,).
        bits: the same as signed integers, (n,).
        values: the same as fp32 or fp64; for 16-bit numbers anything of 16 bits, (n,).
        tables: added to: uint32, (2, 32768); two, so that equal neighbors do not wait for each
            other.

    Returns:
        Sum of the magnitudes, sum of their squares (both in fp64), and the number of zeros (all 0
        for 16-bit numbers, where they follow from the counts); the least prefix above 0, less one
        (2^32 - 1 if there is none), and the greatest.
    """
    total, squares, zeros = 0.0, 0.0, 0
    least, greatest = uint32(0xFFFFFFFF), uint32(0)
    low, high = tables[0], tables[1]
    per_word = 8 // values.itemsize
    step = _STEP // per_word
    shift = 8 * values.itemsize - 16
    for start in range(0, words.size, step):
        some = words[start : start + step]
        first, last = start * per_word, (start + step) * per_word
        ends = _range(bits[first:last], shift)
        least, greatest = min(least, ends[0]), max(greatest, ends[1])
        if per_word == 4:
            _count_16(some, low, high)
            continue
        part = _sums(values[first:last])
        total, squares, zeros = total + part[0], squares + part[1], zeros + part[2]
        if per_word == 2:
            _count_32(some, low, high)
        else:
            _count_64(some, low)
    return total, squares, zeros, least, greatest


@_loop
def collect(tables: Any, first: Any, counts: Any) -> Any:
    """Take the counts of the prefixes from `first` on out of the tables, which are zero then.

    Args:
        tables: as `scan` filled them.
        first: the least prefix above 0.
        counts: written: int64, (prefixes up to the greatest,).

    Returns:
        The count of prefix 0.
    """
    low, high = tables[0], tables[1]
    for place in range(counts.size):
        prefix = first + place
        counts[place] = np.int64(low[prefix]) + np.int64(high[prefix])
        low[prefix] = high[prefix] = 0
    bottom = np.int64(low[0]) + np.int64(high[0])
    low[0] = high[0] = 0
    return bottom


@_loop
def octaves(counts: Any, first: Any, start: Any, width: Any, bins: Any) -> Any:
    """Add counts up, `width` prefixes to a bin, from the prefix `start` on.

    counts: int64, (P,), of the prefixes from `first` on. bins: int64, (B,), added to.
    Returns how many lie below the first bin; what lies above the last is left out.
    """
    below = 0
    for place in range(counts.size):
        prefix = first + place - start
        if prefix < 0:
            below += counts[place]
        elif prefix < width * bins.size:
            bins[prefix // width] += counts[place]
    return below


@_loop
def mark(
    bits: Any,
    magnitude: Any,
    low: Any,
    high: Any,
    masks: Any,
    filled: Any,
    places: Any,
    inside: Any,
) -> None:
    """Mark the entries whose magnitude bits are at least `high`, and gather those in [low, high).

    Args:
        bits: the entries as signed integers, (n,).
        magnitude: the integer that clears the sign, (1,).
        low, high: of each of R masks, (R,), of the dtype of `bits`; equal where nothing is to be
            gathered.
        masks: the marks, written: uint32, (R, n / 32 or more); the bits beyond n are not touched.
        filled: where in `places` and `inside` the room of each mask begins; on return, where what
            was gathered ends: int64, (R,). There must be room for one entry more than there are.
        places, inside: flat indices (int64) and magnitude bits (the dtype of `bits`) of what lies
            inside, written.
    """
    clear = magnitude[0]
    for word in range((bits.size + 31) // 32):
        start = word * 32
        part = bits[start : start + 32]
        for one in range(low.size):
            least, enough = low[one], high[one]
            marks, near = uint32(0), int32(0)
            if part.size == 32:
                # A length known beforehand, and narrow numbers: it becomes vector instructions.
                for place in range(32):
                    size = part[place] & clear
                    marks = uint32(marks | uint32(uint32(size >= enough) << uint32(place)))
                    near = int32(near + int32((size >= least) & (size < enough)))
            else:
                for place in range(part.size):
                    size = part[place] & clear
                    marks = uint32(marks | uint32(uint32(size >= enough) << uint32(place)))
                    near = int32(near + int32((size >= least) & (size < enough)))
            masks[one, word] = marks
            if near:
                end = filled[one]
                for place in range(part.size):
                    size = part[place] & clear
                    places[end] = start + place
                    inside[end] = size
                    end += (size >= least) & (size < enough)
                filled[one] = end


@_loop
def shrink(
    bits: Any, magnitude: Any, bounds: Any, ever: Any, filled: Any, places: Any, inside: Any
) -> None:
    """Make zero what is below `low`, include what is at least `high` in a mask, gather the rest.

    Args:
        bits: the entries as signed integers, changed in place, (n,).
        magnitude: the integer that clears the sign, (1,).
        bounds: low and high, magnitude bits of the dtype of `bits`, (2,).
        ever: bits of the mask: uint32, (n / 32 or more,).
        filled, places, inside: as in `mark`, for a single one.
    """
    clear, least, enough = magnitude[0], bounds[0], bounds[1]
    end = filled[0]
    for word in range((bits.size + 31) // 32):
        start = word * 32
        part = bits[start : start + 32]
        marks, near = uint32(0), int32(0)
        if part.size == 32:
            for place in range(32):
                size = part[place] & clear
                marks = uint32(marks | uint32(uint32(size >= enough) << uint32(place)))
                near = int32(near + int32((size >= least) & (size < enough)))
            for place in range(32):
                part[place] = part[place] if (part[place] & clear) >= least else 0
        else:
            for place in range(part.size):
                size = part[place] & clear
                marks = uint32(marks | uint32(uint32(size >= enough) << uint32(place)))
                near = int32(near + int32((size >= least) & (size < enough)))
                part[place] = part[place] if size >= least else 0
        ever[word] |= marks
        if near:
            for place in range(part.size):
                size = part[place] & clear
                places[end] = start + place
                inside[end] = size
                end += (size >= least) & (size < enough)
    filled[0] = end


@_loop
def clear_at(bits: Any, places: Any, inside: Any, least: Any) -> None:
    """Make zero, of the entries at those places, those whose magnitude bits are below `least`."""
    for entry in range(places.size):
        if inside[entry] < least:
            bits[places[entry]] = 0


@_loop
def clear_like(bits: Any, others: Any, magnitude: Any) -> None:
    """Make zero every entry whose twin in `others` is zero, of either sign."""
    clear = magnitude[0]
    for place in range(bits.size):
        bits[place] = 0 if (others[place] & clear) == 0 else bits[place]


@_loop
def _key(raw: Any, clear: Any, flag: Any) -> Any:
    size = raw & clear
    return -size if raw & flag else size


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
        marked = marked + int32(popcount(np.uint64(marks)))
        found = found + int32(popcount(np.uint64(near)))
        while near and end + 1 < places.size:
            first = int32(popcount(np.uint64(uint32(uint32(near - uint32(1)) & ~near))))
            places[end] = start + first
            inside[end] = _key(part[first], clear, flag)
            end += 1
            near = uint32(near & uint32(near - uint32(1)))
    return marked, found, top > infinity
