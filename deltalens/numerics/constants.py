"""Small tensors of constants, sent to a device once and not at every step."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["bit_weights", "fraction_row", "ones_in_byte", "rank_table"]


@functools.cache
def bit_weights(device: torch.device) -> Tensor:
    """What each bit of a byte is worth, the lowest first.

    Returns:
        uint8, (8,).
    """
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


@functools.cache
def ones_in_byte(device: torch.device) -> Tensor:
    """How many bits of each byte are set.

    Returns:
        int64, (256,).
    """
    return torch.tensor([byte.bit_count() for byte in range(256)], device=device)


@functools.lru_cache(maxsize=4096)
def rank_table(ranks: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """The ranks of some units.

    Args:
        ranks: of each of U units, R ranks.
        device: where they are wanted.

    Returns:
        int64, (U, R).
    """
    return torch.tensor(ranks, dtype=torch.int64, device=device)


@functools.lru_cache
def fraction_row(fractions: tuple[float, ...], device: torch.device) -> Tensor:
    """Fractions at which quantiles are taken.

    Args:
        fractions: F of them, from 0 to 1.
        device: where they are wanted.

    Returns:
        fp64, (F,).
    """
    return torch.tensor(fractions, dtype=torch.float64, device=device)
