"""Loops that numpy and torch have no single pass for, compiled by numba when first called.

Counting by leading bits, with the sums beside it, takes numpy and torch four visits of a chunk;
here it is one, in half the time, and without holding the interpreter's lock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["scanner"]

Scanner = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], tuple[float, float]]


@functools.cache
def scanner() -> Scanner:
    """`scan(bits, values, prefixes, counts, shift)`: write each entry's leading 15 bits, count
    them, and return the sums of magnitudes and of squares, added in fp64.

    bits: the entries as signed integers, (n,). values: the same as floats. prefixes: int16, (n,).
    counts: int32, (2, 32768), added to; two, so that equal neighbours do not wait for each other.
    shift: how far down the leading bits are.
    """
    import numba

    @numba.njit(nogil=True, cache=True, boundscheck=False, fastmath={"reassoc", "contract"})
    def scan(bits: Any, values: Any, prefixes: Any, counts: Any, shift: Any) -> Any:
        total, squares, size = 0.0, 0.0, bits.size
        for place in range(size):
            value = np.float64(values[place])
            total += abs(value)
            squares += value * value
            prefixes[place] = (bits[place] >> shift) & 0x7FFF
        for place in range(0, size - 1, 2):
            counts[0, prefixes[place]] += 1
            counts[1, prefixes[place + 1]] += 1
        if size % 2:
            counts[0, prefixes[size - 1]] += 1
        return total, squares

    compiled: Scanner = scan
    return compiled
