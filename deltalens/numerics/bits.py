"""Floats as integers that sort in the same order.

The bits of a non-negative IEEE-754 number, read as an integer, sort as the number does. Everything
in `numerics` ranks by these *magnitude bits*: the bits of x without its sign. Their leading 15 bits
are the *prefix*, whatever the dtype: all bits of a bf16 or fp16 magnitude, the upper half of an
fp32 one.
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
"""The number of different prefixes. A histogram over all of them takes 256 KiB of int64."""

TASK = 1 << 19
"""Entries per task of a worker if a pass is one compiled loop; a multiple of 64."""

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def digit_count(dtype: torch.dtype) -> int:
    """Return the number of 16-bit digits of a dtype's numbers.

    Args:
        dtype: bf16, fp16, fp32 or fp64.

    Returns:
        1 (bf16, fp16), 2 (fp32) or 4 (fp64).

    Raises:
        TypeError: the dtype is another one.
    """
    if not dtype.is_floating_point or dtype.itemsize not in _INTEGER:
        raise TypeError(f"magnitudes are ranked for fp16, bf16, fp32 and fp64, not {dtype}")
    return dtype.itemsize // 2


def integer_of(dtype: torch.dtype) -> torch.dtype:
    """Return the integer dtype of the same width.

    Args:
        dtype: a floating-point dtype of 2, 4 or 8 bytes.

    Returns:
        int16, int32 or int64.
    """
    return _INTEGER[dtype.itemsize]


def magnitude_bits(values: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute the magnitude bits of each entry.

    Args:
        values: a floating-point tensor, contiguous.
        out: where to write, an integer tensor of the same width and shape; None allocates one.

    Returns:
        The magnitude bits, an integer tensor of the same width.
    """
    integer = integer_of(values.dtype)
    signed, mask = values.view(integer), torch.iinfo(integer).max
    if out is None or out.device.type != "cpu":
        return torch.bitwise_and(signed, mask, out=out)
    np.bitwise_and(signed.numpy(), mask, out=out.numpy())
    return out


def array_view(tensor: Tensor) -> np.ndarray:
    """View a CPU tensor as a numpy array over the same memory, for reading.

    `Tensor.numpy` would pin the memory for good, so that FSDP2 could not release gathered
    parameters.

    Args:
        tensor: a tensor on the CPU.

    Returns:
        The array.
    """
    view: np.ndarray = np.from_dlpack(tensor.detach())
    return view


def cast_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to another dtype, to nearest and ties to even, once.

    torch converts fp64 to fp16 and bf16 by way of fp32, and so rounds twice. Here the intermediate
    fp32 number is rounded to odd: its last bit records that something was cut off.

    Args:
        values: a floating-point tensor.
        dtype: the dtype to round to.

    Returns:
        The rounded tensor.
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
    """Return the magnitude bits of infinity; everything above them is a NaN.

    Args:
        dtype: a floating-point dtype.

    Returns:
        The bits as an integer.
    """
    return int(magnitude_bits(torch.tensor([float("inf")], dtype=dtype)).item())


def magnitude_of_bits(bits: int, dtype: torch.dtype) -> float:
    """Return the number that has the given magnitude bits.

    Args:
        bits: magnitude bits.
        dtype: the number's dtype.

    Returns:
        The number, non-negative.
    """
    return float(torch.tensor([bits], dtype=integer_of(dtype)).view(dtype).item())
