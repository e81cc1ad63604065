"""Reading stored tensors by byte range, into the caller's buffers."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deltalens.errors import CheckpointError
from deltalens.io.header import TensorEntry
from deltalens.io.platform import advise_sequential, read_into

__all__ = ["TensorReader", "same_values", "torch_dtype"]

_BLOCK = 1 << 20
_TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    """Convert a stored dtype to torch's.

    Args:
        entry: a floating-point tensor (its dtype is one of `header.FLOATS`).

    Returns:
        The torch dtype.
    """
    return _TORCH[entry.dtype]


class TensorReader:
    """Reads ranges of tensors into buffers that the caller owns and reuses.

    One shard is open at a time, until a tensor of another shard is read or the reader is closed. A
    reader is not safe to share between threads.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._descriptor = -1

    def read(self, entry: TensorEntry, start: int, out: Tensor) -> None:
        """Read entries of a tensor into a buffer.

        Args:
            entry: the tensor.
            start: flat index of the first entry.
            out: the buffer to fill: 1-D, on the CPU, in the tensor's dtype.

        Raises:
            CheckpointError: the file ends too early, or cannot be read.
            IndexError: the tensor has fewer entries.
        """
        if out.numel() == 0:
            return
        target = memoryview(out.view(torch.uint8).numpy().data)
        offset = entry.begin + start * out.element_size()
        if start < 0 or offset + len(target) > entry.end:
            raise IndexError(f"{entry}: has no entries {start} to {start + out.numel()}")
        try:
            descriptor = self._open(entry.file)
            while target:
                count = read_into(descriptor, target, offset)
                if count == 0:
                    raise CheckpointError(f"{entry.file}: ended while {entry} was being read")
                target, offset = target[count:], offset + count
        except OSError as error:
            raise CheckpointError(f"{entry.file}: cannot be read: {error.strerror}") from error

    def read_bytes(self, entry: TensorEntry, start: int, size: int) -> bytes:
        """Read some bytes of a tensor.

        Args:
            entry: the tensor.
            start: offset of the first byte within the tensor.
            size: how many bytes.

        Returns:
            The bytes.

        Raises:
            CheckpointError: the file ends too early, or cannot be read.
        """
        try:
            content = os.pread(self._open(entry.file), size, entry.begin + start)
        except OSError as error:
            raise CheckpointError(f"{entry.file}: cannot be read: {error.strerror}") from error
        if len(content) < size:
            raise CheckpointError(f"{entry.file}: ended while {entry} was being read")
        return content

    def sample(self, entry: TensorEntry, count: int, stride: int) -> Tensor:
        """Read every `stride`-th of the first `count` entries. The file is mapped, so that only the
        pages that hold these entries are read.

        Args:
            entry: a floating-point tensor.
            count: how many entries to sample from, starting with the first.
            stride: distance between sampled entries.

        Returns:
            The sampled entries: 1-D, (ceil(count / stride),), in the tensor's dtype.

        Raises:
            CheckpointError: the file cannot be read.
        """
        dtype = torch_dtype(entry)
        if count == 0:
            return torch.empty(0, dtype=dtype)
        same_size_integer = np.dtype(f"i{dtype.itemsize}")
        page = entry.begin - entry.begin % mmap.ALLOCATIONGRANULARITY
        try:
            descriptor = self._open(entry.file)
            with mmap.mmap(
                descriptor, entry.end - page, access=mmap.ACCESS_READ, offset=page
            ) as mapped:
                sampled = np.ndarray(
                    -(-count // stride),
                    same_size_integer,
                    mapped,
                    entry.begin - page,
                    (stride * dtype.itemsize,),
                ).copy()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{entry.file}: cannot be read: {error}") from error
        return torch.from_numpy(sampled).view(dtype)

    def _open(self, file: Path) -> int:
        if file is not self._file and file != self._file:  # Comparing paths is slow.
            self.close()
            self._descriptor = os.open(file, os.O_RDONLY)
            self._file = file
            advise_sequential(self._descriptor)
        return self._descriptor

    def close(self) -> None:
        """Close the open shard, if any."""
        if self._file is not None:
            os.close(self._descriptor)
            self._file = None

    def __del__(self) -> None:
        self.close()


def same_values(first: TensorEntry, second: TensorEntry) -> bool:
    """Compare the entries of two stored tensors of one dtype, block by block until they differ.

    Returns:
        Whether all entries are equal numbers, as in `torch.equal`: 0 equals -0, and NaN equals
        nothing.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if first.numel != second.numel:
        return False
    readers = TensorReader(), TensorReader()
    buffers = [
        torch.empty(min(_BLOCK, first.numel), dtype=torch_dtype(entry)) for entry in (first, second)
    ]
    for start in range(0, first.numel, _BLOCK):
        count = min(_BLOCK, first.numel - start)
        readers[0].read(first, start, buffers[0][:count])
        readers[1].read(second, start, buffers[1][:count])
        if not torch.equal(buffers[0][:count], buffers[1][:count]):
            return False
    return True
