"""A 64-bit hash of (seed, tensor name, flat index): what orders entries that tie."""

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
        return _mix_on_device(indices, key)
    whole = indices.numpy().view(np.uint64)
    step = SIZES.hashed
    scratch = np.empty(min(step, whole.size), dtype=np.uint64)
    for start in range(0, whole.size, step):
        piece = whole[start : start + step]
        _mix(piece, key, scratch[: piece.size])
    return indices


def hashed_range(
    start: int, stop: int, key: int, device: torch.device, scratch: Scratch | None = None
) -> Iterator[Tensor]:
    """The hashes of consecutive indices, piece by piece; each is overwritten by the next.

    Args:
        start, stop: the indices.
        key: from `name_key`.
        device: where the hashes are wanted.
        scratch: where they lie.
    """
    if device.type != "cpu":
        yield _mix_on_device(torch.arange(start, stop, device=device), key)
        return
    scratch, step = scratch or Scratch(), SIZES.hashed
    for begin in range(start, stop, step):
        size = min(step, stop - begin)
        hashes = scratch.get("hashes", torch.int64, size)
        torch.arange(begin, begin + size, out=hashes)
        room = scratch.get("mixed hashes", torch.int64, size)
        _mix(hashes.numpy().view(np.uint64), key, room.numpy().view(np.uint64))
        yield hashes


def _mix(hashed: np.ndarray, key: int, scratch: np.ndarray) -> None:
    np.bitwise_xor(hashed, np.uint64(key % (1 << 64)), out=hashed)
    for multiplier, shift in zip(_MULTIPLIERS[:-1], _SHIFTS, strict=True):
        np.multiply(hashed, np.uint64(multiplier), out=hashed)
        np.right_shift(hashed, np.uint64(shift), out=scratch)
        np.bitwise_xor(hashed, scratch, out=hashed)
    np.multiply(hashed, np.uint64(_MULTIPLIERS[-1]), out=hashed)


def _mix_on_device(hashed: Tensor, key: int) -> Tensor:
    """The same in torch, whose shifts keep the sign: it is masked away."""
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
