"""The tensors of stored models, and of models in memory, read run by run from any thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
import xxhash
from torch import Tensor

from deltalens.io.checkpoint import Checkpoint
from deltalens.io.header import TensorEntry
from deltalens.io.pairing import Pairing
from deltalens.io.reader import TensorReader, torch_dtype
from deltalens.numerics.scratch import Scratch

__all__ = [
    "HeldWeights",
    "StoredReader",
    "StoredWeights",
    "Weights",
    "paired_weights",
    "read_difference",
    "runs",
]

_CHUNK = 1 << 19
"""Entries at a time: a few megabytes, which stay in cache, and so many that threads seldom wait for
each other between two operations."""


def runs(start: int, stop: int, step: int = _CHUNK) -> Iterator[tuple[int, int]]:
    """The entries from `start` to `stop`, cut into runs of `step`."""
    return ((at, min(at + step, stop)) for at in range(start, stop, step))


class _Open(threading.local):
    """Each thread's own open file."""

    def __init__(self) -> None:
        self.reader = TensorReader()


class StoredReader:
    """Reads stored tensors from any thread; one file is open in each."""

    def __init__(self) -> None:
        self._open, self._scratch = _Open(), Scratch()

    def read(self, entry: TensorEntry, start: int, out: Tensor) -> None:
        """Fill `out` (1-D, any float dtype and device) with a tensor's entries from `start` on;
        where nothing has to be cast, the file is read straight into it.

        Raises:
            CheckpointError: the file ended, or could not be read.
        """
        dtype, reader = torch_dtype(entry), self._open.reader
        if dtype == out.dtype and out.device.type == "cpu":
            reader.read(entry, start, out)
            return
        for first, last in runs(0, out.numel()):
            stored = self._scratch.get("stored", dtype, last - first)
            reader.read(entry, start + first, stored)
            out[first:last].copy_(stored)

    def sample(self, entry: TensorEntry, count: int, stride: int) -> Tensor:
        """See `TensorReader.sample`."""
        return self._open.reader.sample(entry, count, stride)


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


class StoredWeights:
    """Read from the files anew each time, through a buffer of one chunk."""

    def __init__(self, fingerprint: str, entries: Mapping[str, TensorEntry]) -> None:
        self._fingerprint, self._entries = fingerprint, dict(entries)
        self._reader = StoredReader()

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
        self._reader.read(self._entries[name], start, out)


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


def read_difference(weights: Weights, origin: Tensor, name: str, start: int, out: Tensor) -> Tensor:
    """A run of W - origin, in the dtype of `out`.

    Args:
        weights: W.
        origin: the same run of the origin, 1-D, of the dtype of `out`.
        name: of the tensor.
        start: its first entry.
        out: as long as `origin`; written to.

    Returns:
        The part of `out` that was written: all of it, or less where W has fewer entries.
    """
    found = out[: max(0, weights.size(name) - start)]
    if found.numel():
        weights.read(name, start, found)
        found.sub_(origin[: found.numel()])
    return found
