"""A 64-bit hash of (seed, tensor name, flat index): what orders entries that tie."""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

__all__ = ["HASHED", "index_hash", "name_key"]

HASHED = 1 << 15
"""Indices hashed at a time on a CPU: with their scratch they stay in a core's own cache."""


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


_MULTIPLIERS = tuple(
    _signed(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_SHIFTS = (32, 29)


@functools.cache
def name_key(seed: int, name: str) -> int:
    """The 64-bit key of a tensor's randomness: BLAKE2b of seed and name, as a signed integer."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def index_hash(indices: Tensor, key: int) -> Tensor:
    """Hash flat indices in place (int64, 1-D); hashes are compared as signed integers.

    Every step (an exclusive or with the key, odd multiplications, shifted exclusive ors) can be
    undone, so the hash is a bijection of the index: no two entries of a tensor hash alike.

    Args:
        indices: overwritten with the hashes, and returned.
        key: from `name_key`.
    """
    if indices.device.type != "cpu":
        return _mix(indices, key, torch.empty_like(indices))
    scratch = indices.new_empty(min(HASHED, indices.numel()))
    for start in range(0, indices.numel(), HASHED):
        piece = indices[start : start + HASHED]
        _mix(piece, key, scratch[: piece.numel()])
    return indices


def _mix(hashed: Tensor, key: int, scratch: Tensor) -> Tensor:
    hashed.bitwise_xor_(key)
    for multiplier, shift in zip(_MULTIPLIERS[:-1], _SHIFTS, strict=True):
        hashed.mul_(multiplier)
        torch.bitwise_right_shift(hashed, shift, out=scratch)
        scratch.bitwise_and_((1 << (64 - shift)) - 1)
        hashed.bitwise_xor_(scratch)
    return hashed.mul_(_MULTIPLIERS[-1])
