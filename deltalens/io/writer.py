"""Writing a checkpoint, whole or not at all: the fine-tune's files with some bytes replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from deltalens.io.checkpoint import Checkpoint
from deltalens.io.files import copy_beside
from deltalens.io.folders import check_space, new_folder
from deltalens.io.header import TensorEntry
from deltalens.io.platform import reserve, sync

__all__ = ["CheckpointWriter", "write_like"]

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}
_RECORD = "deltalens.json"
_TEMPLATES = "additional_chat_templates"
_COPY = 1 << 24


class CheckpointWriter:
    """Writes shards with the fine-tune's layout; entries are written by position, in any order.

    Args:
        like: the fine-tune, whose headers are copied.
        folder: the folder to write in.
    """

    def __init__(self, like: Checkpoint, folder: Path) -> None:
        self._like = like
        self._folder = folder
        self._open: dict[Path, int] = {}
        self._written: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Create the shards at their full size, so that the disk cannot fill up later.

        Raises:
            OSError: no space left, or the folder is not writable.
        """
        for file, header in self._like.headers.items():
            shard = self._folder / file.name
            descriptor = os.open(shard, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            self._open[file] = descriptor
            reserve(descriptor, max(1, file.stat().st_size))
            os.pwrite(descriptor, header, 0)

    def write(self, entry: TensorEntry, start: int, values: Tensor) -> None:
        """Write consecutive entries of a tensor. Threads may write different ranges at the same
        time; once all are written, the ranges must cover a prefix of the tensor without gaps.

        Args:
            entry: the tensor, as the fine-tune stores it.
            start: flat index of the first entry.
            values: the entries: 1-D, in the tensor's dtype, on any device.

        Raises:
            OSError: the shard cannot be written.
        """
        source = memoryview(values.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        offset = entry.begin + start * values.element_size()
        while source:
            count = os.pwrite(self._open[entry.file], source, offset)
            source, offset = source[count:], offset + count
        with self._lock:
            end = (start + values.numel()) * values.element_size()
            self._written[entry.name] = max(end, self._written.get(entry.name, 0))

    def finish(self, copies: dict[str, str]) -> None:
        """Fill in all entries that were not written, and flush the shards to the disk.

        Copies of a tied tensor are filled from the tensor that they share their values with, and
        everything else from the fine-tune.

        Args:
            copies: name -> name of the tensor with the same values.

        Raises:
            OSError: a shard cannot be read or written.
        """
        tensors = self._like.tensors
        by_shard: dict[Path, list[TensorEntry]] = {file: [] for file in self._open}
        for entry in tensors.values():
            by_shard[entry.file].append(entry)
        for file, target in self._open.items():
            source = os.open(file, os.O_RDONLY)
            try:
                for entry in by_shard[file]:
                    if entry.name not in copies:
                        done = self._written.get(entry.name, 0)
                        self._fill(source, entry.begin, entry, target, done)
            finally:
                os.close(source)
        for name, shared in copies.items():
            first, entry = tensors[shared], tensors[name]
            self._fill(self._open[first.file], first.begin, entry, self._open[entry.file], 0)
        for target in self._open.values():
            sync(target)

    @staticmethod
    def _fill(source: int, begin: int, entry: TensorEntry, target: int, done: int) -> None:
        size = entry.end - entry.begin
        while done < size:
            piece = os.pread(source, min(_COPY, size - done), begin + done)
            if not piece:
                raise OSError(f"{entry.file} ended while it was being copied")
            done += os.pwrite(target, piece, entry.begin + done)

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


@contextmanager
def write_like(
    like: Checkpoint, out: Path, *, record: bytes, copies: dict[str, str]
) -> Iterator[CheckpointWriter]:
    """Write a variant of a checkpoint, with the same sharding, dtypes, metadata, configuration and
    tokenizer, and the same bytes wherever nothing else is written. The folder appears complete at
    the end of the block, or not at all.

    Args:
        like: the fine-tune.
        out: a folder that does not exist, or is empty.
        record: a record of how the checkpoint was made, stored as `deltalens.json` beside the
            weights.
        copies: tensors stored twice: name -> name of the tensor with the same values.

    Yields:
        A writer for the entries that change.

    Raises:
        DeltaLensError: no space left, or the folder is not writable.
    """
    check_space(out, sum(file.stat().st_size for file in like.headers))
    with new_folder(out) as folder:
        if like.path.is_dir():
            _copy_others(like.path, folder)
        (folder / _RECORD).write_bytes(record)
        writer = CheckpointWriter(like, folder)
        try:
            writer.begin()
            yield writer
            writer.finish(copies)
        finally:
            writer.close()


def _copy_others(source: Path, target: Path) -> None:
    """Copy every file that holds no weights: configuration, tokenizer, index, license."""
    for file in sorted(source.iterdir()):
        if file.name == _TEMPLATES and file.is_dir() and not file.is_symlink():
            (target / _TEMPLATES).mkdir()
            for template in sorted(file.iterdir()):
                copy_beside(template, source, target / _TEMPLATES / template.name)
        elif file.suffix not in _WEIGHTS and not file.name.startswith(".") and not file.is_dir():
            copy_beside(file, source, target / file.name)
