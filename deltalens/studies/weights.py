"""The weights of models, in files or in memory, read part by part from any thread."""

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
    """Divide a range of entries into runs.

    Args:
        start, stop: the range.
        step: entries per run; the last run may be shorter.

    Returns:
        (start, stop) of each run, in order.
    """
    return ((first, min(first + step, stop)) for first in range(start, stop, step))


class _Open(threading.local):
    """One open file per thread."""

    def __init__(self) -> None:
        self.reader = TensorReader()


class StoredReader:
    """Reads stored tensors from any thread. Each thread keeps one file open."""

    def __init__(self) -> None:
        self._open, self._scratch = _Open(), Scratch()

    def read(self, entry: TensorEntry, start: int, out: Tensor) -> None:
        """Read consecutive entries of a tensor. Without a cast, the file is read directly into
        `out`.

        Args:
            entry: the tensor.
            start: flat index of the first entry.
            out: filled with the entries; 1-D, of any float dtype and device.

        Raises:
            CheckpointError: the file is too short, or cannot be read.
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
    """The weights of one model, which can be read part by part from any thread."""

    @property
    def fingerprint(self) -> str:
        """A digest of the weights: equal for equal weights."""
        ...

    def read(self, name: str, start: int, out: Tensor) -> None:
        """Read consecutive entries of a tensor.

        Args:
            name: of the tensor.
            start: flat index of the first entry.
            out: filled with the entries; 1-D, of any float dtype and device.
        """
        ...

    def size(self, name: str) -> int:
        """Count the entries of a tensor.

        Args:
            name: of the tensor.

        Returns:
            Number of entries; 0 if the model has no such tensor.
        """
        ...


class StoredWeights:
    """Weights in files; each read goes to the file, through a buffer of one chunk.

    Args:
        fingerprint: a digest of the weights.
        entries: name -> stored tensor.
    """

    def __init__(self, fingerprint: str, entries: Mapping[str, TensorEntry]) -> None:
        self._fingerprint, self._entries = fingerprint, dict(entries)
        self._reader = StoredReader()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> StoredWeights:
        """Take the weights of a checkpoint.

        Args:
            checkpoint: the files.

        Returns:
            The weights, under their stored names.
        """
        return cls(checkpoint.fingerprint, checkpoint.tensors)

    @property
    def fingerprint(self) -> str:
        """The checkpoint's fingerprint."""
        return self._fingerprint

    def size(self, name: str) -> int:
        """See `Weights`. An embedding can have fewer rows than that of the origin."""
        return self._entries[name].numel if name in self._entries else 0

    def read(self, name: str, start: int, out: Tensor) -> None:
        """See `Weights`."""
        self._reader.read(self._entries[name], start, out)


def paired_weights(pairing: Pairing) -> StoredWeights:
    """Take the weights of a pairing's second model.

    Args:
        pairing: of the origin and another model.

    Returns:
        The other model's weights, under the origin's names.
    """
    return StoredWeights(pairing.base.fingerprint, {pair.name: pair.base for pair in pairing.pairs})


class HeldWeights:
    """Weights in memory.

    Args:
        tensors: name -> tensor; not copied if contiguous.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.detach().reshape(-1) for name, tensor in tensors.items()}

    @property
    def fingerprint(self) -> str:
        """A digest of names, dtypes, sizes and bits."""
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
    """Compute consecutive entries of W - origin, in the dtype of `out`.

    Args:
        weights: W.
        origin: the origin's entries, 1-D, of the dtype of `out`.
        name: of the tensor.
        start: flat index of the first entry.
        out: written to; of the size of `origin`.

    Returns:
        The part of `out` that was written: shorter than `out` if W has fewer entries.
    """
    difference = out[: max(0, weights.size(name) - start)]
    if difference.numel():
        weights.read(name, start, difference)
        difference.sub_(origin[: difference.numel()])
    return difference
