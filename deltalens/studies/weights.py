"""Where a scan's weights come from: the files of a checkpoint, or tensors in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

import torch
import xxhash
from torch import Tensor

from deltalens.io.checkpoint import Checkpoint
from deltalens.io.header import TensorEntry
from deltalens.io.pairing import Pairing
from deltalens.io.reader import TensorReader, torch_dtype
from deltalens.numerics.scratch import Scratch

__all__ = ["CHUNK", "HeldWeights", "StoredWeights", "Weights", "paired_weights"]

CHUNK = 1 << 19
"""Entries at a time: a few megabytes, which stay in cache."""


class Weights(Protocol):
    """The weights of one model, to be read part by part, from any thread."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights."""
        ...

    def read(self, name: str, start: int, out: Tensor) -> None:
        """Fill `out` (1-D, any float dtype and device) with a tensor's entries from `start` on."""
        ...

    def size(self, name: str) -> int:
        """How many entries a tensor has here; 0 if it is not here."""
        ...


class _Readers(threading.local):
    """Each thread's own open file."""

    def __init__(self) -> None:
        self.reader = TensorReader()


class StoredWeights:
    """Read from the files anew each time, through a buffer of one chunk."""

    def __init__(self, fingerprint: str, entries: Mapping[str, TensorEntry]) -> None:
        self._fingerprint, self._entries = fingerprint, dict(entries)
        self._readers, self._scratch = _Readers(), Scratch()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> StoredWeights:
        """Under the checkpoint's own names."""
        return cls(checkpoint.fingerprint, checkpoint.tensors)

    @property
    def fingerprint(self) -> str:
        """The checkpoint's."""
        return self._fingerprint

    def size(self, name: str) -> int:
        """See `Weights`. An embedding can have fewer rows than the origin's."""
        return self._entries[name].numel if name in self._entries else 0

    def read(self, name: str, start: int, out: Tensor) -> None:
        """See `Weights`."""
        entry = self._entries[name]
        dtype = torch_dtype(entry)
        reader = self._readers.reader
        if dtype == out.dtype and out.device.type == "cpu":
            reader.read(entry, start, out)
            return
        for at in range(0, out.numel(), CHUNK):
            part = out[at : at + CHUNK]
            stored = self._scratch.get("stored", dtype, part.numel())
            reader.read(entry, start + at, stored)
            part.copy_(stored)


def paired_weights(pairing: Pairing) -> StoredWeights:
    """The other model of a pair, under the names of the origin."""
    return StoredWeights(pairing.base.fingerprint, {pair.name: pair.base for pair in pairing.pairs})


class HeldWeights:
    """Tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.detach().reshape(-1) for name, tensor in tensors.items()}

    @property
    def fingerprint(self) -> str:
        """A hash of names, shapes and bits."""
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.numel()}\n".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def size(self, name: str) -> int:
        """See `Weights`."""
        return self._tensors[name].numel() if name in self._tensors else 0

    def read(self, name: str, start: int, out: Tensor) -> None:
        """See `Weights`."""
        out.copy_(self._tensors[name][start : start + out.numel()])
