"""Reading stored tensors: by byte range, into buffers of the caller's."""

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
    """The torch dtype of a floating-point tensor (one of `header.FLOATS`)."""
    return _TORCH[entry.dtype]


class TensorReader:
    """Reads ranges of tensors into buffers that the caller owns and reuses.

    One shard is open at a time, until another is asked for or the reader goes. For one thread.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._descriptor = -1

    def read(self, entry: TensorEntry, start: int, out: Tensor) -> None:
        """Fill `out` (1-D, on the CPU, the tensor's dtype) with entries from `start` on.

        Raises:
            CheckpointError: the file ended, or could not be read.
        """
        if out.numel() == 0:
            return
        target = memoryview(out.view(torch.uint8).numpy().data)
        at = entry.begin + start * out.element_size()
        if start < 0 or at + len(target) > entry.end:
            raise IndexError(f"{entry}: entries {start} to {start + out.numel()} asked for")
        try:
            descriptor = self._open(entry.file)
            while target:
                count = read_into(descriptor, target, at)
                if count == 0:
                    raise CheckpointError(f"{entry.file}: ended while {entry} was read")
                target, at = target[count:], at + count
        except OSError as error:
            raise CheckpointError(f"{entry.file}: cannot be read: {error.strerror}") from error

    def piece(self, entry: TensorEntry, start: int, size: int) -> bytes:
        """So many bytes of a tensor, from so many on.

        Raises:
            CheckpointError: the file ended, or could not be read.
        """
        try:
            found = os.pread(self._open(entry.file), size, entry.begin + start)
        except OSError as error:
            raise CheckpointError(f"{entry.file}: cannot be read: {error.strerror}") from error
        if len(found) < size:
            raise CheckpointError(f"{entry.file}: ended while {entry} was read")
        return found

    def sample(self, entry: TensorEntry, count: int, stride: int) -> Tensor:
        """Every so many-th of the first `count` entries, from the first on, as a new tensor.

        Through a mapping: only the pages that hold them are touched.

        Raises:
            CheckpointError: the file could not be read.
        """
        dtype = torch_dtype(entry)
        if count == 0:
            return torch.empty(0, dtype=dtype)
        numbers = np.dtype(f"i{dtype.itemsize}")
        page = entry.begin - entry.begin % mmap.ALLOCATIONGRANULARITY
        try:
            descriptor = self._open(entry.file)
            with mmap.mmap(
                descriptor, entry.end - page, access=mmap.ACCESS_READ, offset=page
            ) as mapped:
                taken = np.ndarray(
                    -(-count // stride),
                    numbers,
                    mapped,
                    entry.begin - page,
                    (stride * dtype.itemsize,),
                ).copy()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{entry.file}: cannot be read: {error}") from error
        return torch.from_numpy(taken).view(dtype)

    def _open(self, file: Path) -> int:
        if file is not self._file and file != self._file:  # Paths are slow to compare.
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


def same_values(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two stored tensors of one dtype hold equal numbers, as `torch.equal` has it: 0 is -0,
    and a NaN equals nothing. Read block by block until they differ."""
    if one.numel != other.numel:
        return False
    first, second = TensorReader(), TensorReader()
    here, there = (torch.empty(min(_BLOCK, one.numel), dtype=torch_dtype(e)) for e in (one, other))
    for start in range(0, one.numel, _BLOCK):
        count = min(_BLOCK, one.numel - start)
        first.read(one, start, here[:count])
        second.read(other, start, there[:count])
        if not torch.equal(here[:count], there[:count]):
            return False
    return True
