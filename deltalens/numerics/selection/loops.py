"""Loops for which numpy and torch have no single pass, compiled by numba: a visit on the CPU.

Each takes a whole tensor in one call and releases the interpreter's lock, so that threads do not
wait for one another. Import this module where it is used, because numba takes a moment to load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, uint32

from deltalens.numerics.compiled_masks import popcount
from deltalens.numerics.compiling import compiled

__all__ = ["clear_at", "clear_like", "collect", "mark", "mark_above", "octaves", "scan", "shrink"]

_STEP = 4096
"""Entries that one loop and then the next visits, while they are in the nearest cache."""

_PREFIX = np.uint64(0x7FFF)
_16, _32, _48 = np.uint64(16), np.uint64(32), np.uint64(48)
_ONE = np.uint32(1)

_loop = compiled()
_sum_loop = compiled(fastmath={"reassoc", "contract"})


@_sum_loop
def _sums(values: Any) -> Any:
    total, squares, zeros = 0.0, 0.0, 0
    for index in range(values.size):
        value = np.float64(values[index])
        total += abs(value)
        squares += value * value
        zeros += value == 0.0
    return total, squares, zeros


@_loop
def _range(bits: Any, shift: Any) -> Any:
    """The least prefix above 0, minus one, and the greatest."""
    least, greatest = uint32(0xFFFFFFFF), uint32(0)
    for index in range(bits.size):
        prefix = uint32((bits[index] >> shift) & 0x7FFF)
        least = min(least, uint32(prefix - uint32(1)))
        greatest = max(greatest, prefix)
    return least, greatest


@_loop
def _count_16(words: Any, low: Any, high: Any) -> None:
    for index in range(words.size):
        word = words[index]
        low[word & _PREFIX] += _ONE
        high[(word >> _16) & _PREFIX] += _ONE
        low[(word >> _32) & _PREFIX] += _ONE
        high[(word >> _48) & _PREFIX] += _ONE


@_loop
def _count_32(words: Any, low: Any, high: Any) -> None:
    empty = 0
    for index in range(words.size):
        word = words[index]
        # Rows of zeros are common, and would wait for each other at the same counter.
        if word == 0:
            empty += 1
        else:
            low[(word >> _16) & _PREFIX] += _ONE
            high[(word >> _48) & _PREFIX] += _ONE
    low[0] += np.uint32(empty)
    high[0] += np.uint32(empty)


@_loop
def _count_64(words: Any, low: Any) -> None:
    for index in range(words.size):
        low[(words[index] >> _48) & _PREFIX] += _ONE


@_loop
def scan(words: Any, bits: Any, values: Any, tables: Any) -> Any:
    """Count magnitudes by their leading 15 bits, and add them up.

    Args:
        words: the entries, as many to a word as fit: uint64, (n / entries per word,).
        bits: the same entries as signed integers, (n,).
        values: the same entries as fp32 or fp64; for 16-bit numbers anything of 16 bits, (n,).
        tables: added to: uint32, (2, 32768); two, so that equal neighbors do not wait for each
            other.

    Returns:
        The sum of the magnitudes, the sum of their squares (both in fp64) and the number of zeros
        (all 0 for 16-bit numbers, where they follow from the counts); the least prefix above 0,
        minus one (2^32 - 1 if there is none), and the greatest prefix.
    """
    total, squares, zeros = 0.0, 0.0, 0
    least, greatest = uint32(0xFFFFFFFF), uint32(0)
    low, high = tables[0], tables[1]
    per_word = 8 // values.itemsize
    step = _STEP // per_word
    shift = 8 * values.itemsize - 16
    for start in range(0, words.size, step):
        chunk = words[start : start + step]
        first, last = start * per_word, (start + step) * per_word
        prefix_range = _range(bits[first:last], shift)
        least, greatest = min(least, prefix_range[0]), max(greatest, prefix_range[1])
        if per_word == 4:
            _count_16(chunk, low, high)
            continue
        sums = _sums(values[first:last])
        total, squares, zeros = total + sums[0], squares + sums[1], zeros + sums[2]
        if per_word == 2:
            _count_32(chunk, low, high)
        else:
            _count_64(chunk, low)
    return total, squares, zeros, least, greatest


@_loop
def collect(tables: Any, first: Any, counts: Any) -> Any:
    """Move the counts of the prefixes from `first` on out of the tables, which are zero afterwards.

    Args:
        tables: as `scan` filled them.
        first: the least prefix above 0.
        counts: written: int64, (prefixes up to the greatest,).

    Returns:
        The count of prefix 0.
    """
    low, high = tables[0], tables[1]
    for index in range(counts.size):
        prefix = first + index
        counts[index] = np.int64(low[prefix]) + np.int64(high[prefix])
        low[prefix] = high[prefix] = 0
    bottom = np.int64(low[0]) + np.int64(high[0])
    low[0] = high[0] = 0
    return bottom


@_loop
def octaves(counts: Any, first: Any, start: Any, width: Any, bins: Any) -> Any:
    """Add up counts, `width` prefixes per bin, from the prefix `start` on.

    Args:
        counts: counts of the prefixes from `first` on, int64, (P,).
        first: the prefix of the first count.
        start: the prefix at which the first bin begins.
        width: prefixes per bin.
        bins: added to, int64, (B,).

    Returns:
        The number of entries below the first bin; those above the last bin are left out.
    """
    below = 0
    for index in range(counts.size):
        prefix = first + index - start
        if prefix < 0:
            below += counts[index]
        elif prefix < width * bins.size:
            bins[prefix // width] += counts[index]
    return below


@_loop
def mark(
    bits: Any,
    magnitude_mask: Any,
    low: Any,
    high: Any,
    masks: Any,
    filled: Any,
    indices: Any,
    keys: Any,
) -> None:
    """Mark the entries whose magnitude bits are at least `high`, and gather those in [low, high).

    Args:
        bits: the entries as signed integers, (n,).
        magnitude_mask: the integer that clears the sign, (1,).
        low: the lower end for each of R masks, (R,), of the dtype of `bits`.
        high: the upper ends, likewise; equal to `low` where nothing is to be gathered.
        masks: written: the marks, uint32, (R, n / 32 or more); the bits beyond n are not touched.
        filled: where the room of each mask in `indices` and `keys` begins; afterwards, where the
            gathered entries end: int64, (R,). There must be room for one entry more than are
            gathered.
        indices: written: flat indices of the gathered entries, int64.
        keys: written: their magnitude bits, of the dtype of `bits`.
    """
    mask = magnitude_mask[0]
    for word in range((bits.size + 31) // 32):
        start = word * 32
        entries = bits[start : start + 32]
        for row in range(low.size):
            low_bits, high_bits = low[row], high[row]
            marked, candidates = uint32(0), int32(0)
            if entries.size == 32:
                # A fixed length and narrow integers let the compiler vectorize this.
                for bit in range(32):
                    key = entries[bit] & mask
                    marked = uint32(marked | uint32(uint32(key >= high_bits) << uint32(bit)))
                    candidates = int32(candidates + int32((key >= low_bits) & (key < high_bits)))
            else:
                for bit in range(entries.size):
                    key = entries[bit] & mask
                    marked = uint32(marked | uint32(uint32(key >= high_bits) << uint32(bit)))
                    candidates = int32(candidates + int32((key >= low_bits) & (key < high_bits)))
            masks[row, word] = marked
            if candidates:
                end = filled[row]
                for bit in range(entries.size):
                    key = entries[bit] & mask
                    indices[end] = start + bit
                    keys[end] = key
                    end += (key >= low_bits) & (key < high_bits)
                filled[row] = end


@_loop
def shrink(
    bits: Any, magnitude_mask: Any, bounds: Any, ever: Any, filled: Any, indices: Any, keys: Any
) -> None:
    """Set entries below `low` to zero, mark those that are at least `high`, and gather the rest.

    Args:
        bits: the entries as signed integers, changed in place, (n,).
        magnitude_mask: the integer that clears the sign, (1,).
        bounds: low and high, magnitude bits of the dtype of `bits`, (2,).
        ever: bits of the mask, added to: uint32, (n / 32 or more,).
        filled: as in `mark`, for a single mask.
        indices: as in `mark`.
        keys: as in `mark`.
    """
    mask, low_bits, high_bits = magnitude_mask[0], bounds[0], bounds[1]
    end = filled[0]
    for word in range((bits.size + 31) // 32):
        start = word * 32
        entries = bits[start : start + 32]
        marked, candidates = uint32(0), int32(0)
        if entries.size == 32:
            for bit in range(32):
                key = entries[bit] & mask
                marked = uint32(marked | uint32(uint32(key >= high_bits) << uint32(bit)))
                candidates = int32(candidates + int32((key >= low_bits) & (key < high_bits)))
            for bit in range(32):
                entries[bit] = entries[bit] if (entries[bit] & mask) >= low_bits else 0
        else:
            for bit in range(entries.size):
                key = entries[bit] & mask
                marked = uint32(marked | uint32(uint32(key >= high_bits) << uint32(bit)))
                candidates = int32(candidates + int32((key >= low_bits) & (key < high_bits)))
                entries[bit] = entries[bit] if key >= low_bits else 0
        ever[word] |= marked
        if candidates:
            for bit in range(entries.size):
                key = entries[bit] & mask
                indices[end] = start + bit
                keys[end] = key
                end += (key >= low_bits) & (key < high_bits)
    filled[0] = end


@_loop
def clear_at(bits: Any, indices: Any, keys: Any, least: Any) -> None:
    """Set those of the given entries to zero whose magnitude bits are below `least`.

    Args:
        bits: all entries as integers, changed in place, (n,).
        indices: flat indices of the entries, int64, (m,).
        keys: their magnitude bits, (m,).
        least: the bound.
    """
    for entry in range(indices.size):
        if keys[entry] < least:
            bits[indices[entry]] = 0


@_loop
def clear_like(bits: Any, others: Any, magnitude_mask: Any) -> None:
    """Set every entry to zero whose counterpart in `others` is zero, of either sign.

    Args:
        bits: the entries as integers, changed in place, (n,).
        others: the counterparts as integers, (n,).
        magnitude_mask: the integer that clears the sign, (1,).
    """
    mask = magnitude_mask[0]
    for index in range(bits.size):
        bits[index] = 0 if (others[index] & mask) == 0 else bits[index]


@_loop
def _key(raw: Any, magnitude_mask: Any, flag: Any) -> Any:
    magnitude = raw & magnitude_mask
    return -magnitude if raw & flag else magnitude


@_loop
def mark_above(
    bits: Any, rule: Any, low: Any, high: Any, words: Any, indices: Any, keys: Any
) -> Any:
    """Mark the entries whose key is at least `high`, and gather those with a key in [low, high).

    The key of a number is its magnitude bits, negated if the flag is set in its bits.

    Args:
        bits: the entries as signed integers, (n,).
        rule: the mask that clears the sign, the flag (the sign bit to rank by value, 0 to rank by
            magnitude), and the magnitude bits of infinity: of the dtype of `bits`, (3,).
        low: the lower end, (1,), of the dtype of `bits`.
        high: the upper end, likewise; equal to `low` if nothing is to be gathered.
        words: written: the marks, uint32, (n / 32 or more,).
        indices: written: flat indices of the gathered entries, int64.
        keys: written: their keys, of the dtype of `bits`.

    Returns:
        The number of marked entries, the number of entries inside (they are gathered only while
        there is room for one more), and whether there is a NaN.
    """
    magnitude_mask, flag, infinity = rule[0], rule[1], rule[2]
    low_key, high_key = low[0], high[0]
    marked: Any = 0
    inside: Any = 0
    end: Any = 0
    largest = bits.dtype.type(0)
    for word in range((bits.size + 31) // 32):
        start = word * 32
        entries = bits[start : start + 32]
        marked_bits, near = uint32(0), uint32(0)
        if entries.size == 32:
            # A fixed length and narrow integers let the compiler vectorize this.
            for bit in range(32):
                key = _key(entries[bit], magnitude_mask, flag)
                marked_bits = uint32(marked_bits | uint32(uint32(key >= high_key) << uint32(bit)))
                near = uint32(near | uint32(uint32(key >= low_key) << uint32(bit)))
                largest = max(largest, entries[bit] & magnitude_mask)
        else:
            for bit in range(entries.size):
                key = _key(entries[bit], magnitude_mask, flag)
                marked_bits = uint32(marked_bits | uint32(uint32(key >= high_key) << uint32(bit)))
                near = uint32(near | uint32(uint32(key >= low_key) << uint32(bit)))
                largest = max(largest, entries[bit] & magnitude_mask)
        words[word] = marked_bits
        near = uint32(near & ~marked_bits)
        marked = marked + int32(popcount(np.uint64(marked_bits)))
        inside = inside + int32(popcount(np.uint64(near)))
        while near and end + 1 < indices.size:
            lowest = int32(popcount(np.uint64(uint32(uint32(near - uint32(1)) & ~near))))
            indices[end] = start + lowest
            keys[end] = _key(entries[lowest], magnitude_mask, flag)
            end += 1
            near = uint32(near & uint32(near - uint32(1)))
    return marked, inside, largest > infinity
