"""A 64-bit hash of (seed, tensor name, flat index), which orders entries that tie."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.scratch import Scratch
from deltalens.numerics.sizes import SIZES

__all__ = ["hashed_range", "index_hash", "name_key"]

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (32, 29)


@functools.lru_cache(maxsize=4096)
def name_key(seed: int, name: str) -> int:
    """Compute the 64-bit key of a tensor's randomness: BLAKE2b of seed and name.

    Args:
        seed: any integer.
        name: the tensor's name.

    Returns:
        The key as a signed integer.
    """
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def index_hash(indices: Tensor, key: int) -> Tensor:
    """Hash flat indices in place.

    Every step (exclusive or with the key, odd multiplications, shifted exclusive ors) is
    invertible, so the hash is a bijection of the index: no two entries of a tensor share a hash.
    Hashes are compared as signed integers.

    Args:
        indices: int64, 1-D; overwritten with the hashes.
        key: the key from `name_key`.

    Returns:
        The hashes, int64, 1-D, in the memory of `indices`.
    """
    if indices.device.type != "cpu":
        return _mix_on_device(indices, key)
    words = indices.numpy().view(np.uint64)
    step = SIZES.hashed
    scratch = np.empty(min(step, words.size), dtype=np.uint64)
    for start in range(0, words.size, step):
        piece = words[start : start + step]
        _mix(piece, key, scratch[: piece.size])
    return indices


def hashed_range(
    start: int, stop: int, key: int, device: torch.device, scratch: Scratch | None = None
) -> Iterator[Tensor]:
    """Hash consecutive indices, piece by piece.

    Args:
        start: the first index.
        stop: the index after the last.
        key: the key from `name_key`.
        device: where the hashes are needed.
        scratch: memory for the hashes.

    Returns:
        An iterator over hashes, int64, 1-D; each piece is overwritten by the next.
    """
    if device.type != "cpu":
        yield _mix_on_device(torch.arange(start, stop, device=device), key)
        return
    scratch, step = scratch or Scratch(), SIZES.hashed
    for first in range(start, stop, step):
        size = min(step, stop - first)
        hashes = scratch.get("hashes", torch.int64, size)
        torch.arange(first, first + size, out=hashes)
        buffer = scratch.get("mixed hashes", torch.int64, size)
        _mix(hashes.numpy().view(np.uint64), key, buffer.numpy().view(np.uint64))
        yield hashes


def _mix(hashed: np.ndarray, key: int, scratch: np.ndarray) -> None:
    np.bitwise_xor(hashed, np.uint64(key % (1 << 64)), out=hashed)
    for multiplier, shift in zip(_MULTIPLIERS[:-1], _SHIFTS, strict=True):
        np.multiply(hashed, np.uint64(multiplier), out=hashed)
        np.right_shift(hashed, np.uint64(shift), out=scratch)
        np.bitwise_xor(hashed, scratch, out=hashed)
    np.multiply(hashed, np.uint64(_MULTIPLIERS[-1]), out=hashed)


def _mix_on_device(hashed: Tensor, key: int) -> Tensor:
    """`_mix` in torch, whose right shifts keep the sign bit, so that it has to be masked away."""
    scratch = torch.empty_like(hashed)
    hashed.bitwise_xor_(key)
    for multiplier, shift in zip(_MULTIPLIERS[:-1], _SHIFTS, strict=True):
        hashed.mul_(_signed(multiplier))
        torch.bitwise_right_shift(hashed, shift, out=scratch)
        scratch.bitwise_and_((1 << (64 - shift)) - 1)
        hashed.bitwise_xor_(scratch)
    return hashed.mul_(_signed(_MULTIPLIERS[-1]))


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
