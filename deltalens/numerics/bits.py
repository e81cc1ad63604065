"""Floats as integers that sort the same way.

The bits of a non-negative IEEE-754 number, read as an integer, sort as the number does. All of
`numerics` ranks by these *magnitude bits*: the bits of x without its sign. Their leading 15 are a
*prefix*, whatever the dtype: all there is of a bf16 or fp16 number, the upper half of an fp32 one.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "PREFIXES",
    "TASK",
    "array_view",
    "cast_once",
    "digit_count",
    "infinity_bits",
    "integer_of",
    "magnitude_bits",
    "magnitude_of_bits",
]

PREFIXES = 1 << 15
"""How many prefixes there are: a histogram over all of them is 256 KiB of int64."""

TASK = 1 << 19
"""Entries given to one worker at a time where a pass is one compiled loop; a multiple of 64."""

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def digit_count(dtype: torch.dtype) -> int:
    """How many 16-bit digits a number of this dtype has: 1 (bf16, fp16), 2 (fp32) or 4 (fp64)."""
    if not dtype.is_floating_point or dtype.itemsize not in _INTEGER:
        raise TypeError(f"magnitudes are ranked for fp16, bf16, fp32 and fp64, not {dtype}")
    return dtype.itemsize // 2


def integer_of(dtype: torch.dtype) -> torch.dtype:
    """The integer dtype of the same width."""
    return _INTEGER[dtype.itemsize]


def magnitude_bits(values: Tensor, out: Tensor | None = None) -> Tensor:
    """The magnitude bits of each entry, as an integer tensor of the same width."""
    integer = integer_of(values.dtype)
    signed, mask = values.view(integer), torch.iinfo(integer).max
    if out is None or out.device.type != "cpu":
        return torch.bitwise_and(signed, mask, out=out)
    np.bitwise_and(signed.numpy(), mask, out=out.numpy())
    return out


def array_view(tensor: Tensor) -> np.ndarray:
    """A tensor on the CPU as an array to read, over the same memory.

    `Tensor.numpy` pins the memory for good, and FSDP2 could not let go of gathered parameters.
    """
    found: np.ndarray = np.from_dlpack(tensor.detach())
    return found


def cast_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to a dtype, to nearest and ties to even, once.

    torch takes fp64 to fp16 and bf16 by way of fp32, and so rounds twice. Here fp32 is rounded to
    odd on the way: it keeps, in its last bit, that something was cut off.
    """
    if values.dtype != torch.float64 or dtype.itemsize > 2:
        return values.to(dtype)
    narrow = values.float()
    back = narrow.double()
    bits = narrow.view(torch.int32)
    bits -= (back.abs() > values.abs()).int()
    bits |= (back != values).int()
    return narrow.to(dtype)


@functools.cache
def infinity_bits(dtype: torch.dtype) -> int:
    """The magnitude bits of infinity: anything above is a NaN."""
    return int(magnitude_bits(torch.tensor([float("inf")], dtype=dtype)).item())


def magnitude_of_bits(bits: int, dtype: torch.dtype) -> float:
    """The number whose magnitude bits are `bits`."""
    return float(torch.tensor([bits], dtype=integer_of(dtype)).view(dtype).item())
