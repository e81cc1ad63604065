"""Small tensors of constants, sent to a device once and not at every step."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["bit_weights", "fraction_row", "ones_in_byte", "rank_table"]


@functools.cache
def bit_weights(device: torch.device) -> Tensor:
    """Return the value of each bit of a byte, lowest first.

    Args:
        device: where the tensor is needed.

    Returns:
        uint8, (8,).
    """
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


@functools.cache
def ones_in_byte(device: torch.device) -> Tensor:
    """Return the number of set bits of each possible byte.

    Args:
        device: where the tensor is needed.

    Returns:
        int64, (256,).
    """
    return torch.tensor([byte.bit_count() for byte in range(256)], device=device)


@functools.lru_cache(maxsize=4096)
def rank_table(ranks: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return the ranks of several units as a tensor.

    Args:
        ranks: R ranks for each of U units.
        device: where the tensor is needed.

    Returns:
        int64, (U, R).
    """
    return torch.tensor(ranks, dtype=torch.int64, device=device)


@functools.lru_cache
def fraction_row(fractions: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the fractions at which quantiles are taken as a tensor.

    Args:
        fractions: F fractions, from 0 to 1.
        device: where the tensor is needed.

    Returns:
        fp64, (F,).
    """
    return torch.tensor(fractions, dtype=torch.float64, device=device)
