"""Checkpoints of safetensors shards, opened lazily: headers first, then tensors by byte range."""

from __future__ import annotations

import functools
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalens.errors import CheckpointError, Lines, fault_list, similar_names
from deltalens.io.checksum import checksum
from deltalens.io.collection import collection_paused
from deltalens.io.escaping import short_path
from deltalens.io.fingerprint import files_beside, fingerprint_of
from deltalens.io.header import FLOATS, TensorEntry, read_header
from deltalens.io.plain_json import read_settings
from deltalens.io.reader import TensorReader, torch_dtype

__all__ = [
    "ADAPTER",
    "INDEX",
    "SINGLE",
    "Checkpoint",
    "is_adapter",
    "open_checkpoint",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NOT_SAFETENSORS = "which is not a .safetensors file"
_MOST_NAMED = 3
"""How many differences between an index and its shards a note lists."""


class Checkpoint:
    """A checkpoint on disk. Opening it reads the headers only; use `open_checkpoint`.

    Attributes:
        path: the folder, or the single file.
        tensors: every stored tensor by name, shard by shard, in the order of the bytes.
        headers: the raw header of each shard file.
        notes: anomalies that a reader of the results should know about.
    """

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self.headers: dict[Path, bytes] = {}
        self.tensors: dict[str, TensorEntry] = {}
        self.notes: list[str] = []
        self._fingerprints: dict[Path, str] = {}
        for file in files:
            self.headers[file], entries = read_header(file)
            for entry in entries:
                first = self.tensors.setdefault(entry.name, entry)
                if first is not entry:
                    raise CheckpointError(
                        f"{path}: tensor {entry.name!r} is stored twice, in {first.file.name} and "
                        f"in {file.name}"
                    )

    def __repr__(self) -> str:
        entries = sum(entry.numel for entry in self.tensors.values())
        shards = "1 file" if len(self.headers) == 1 else f"{len(self.headers):,} files"
        return (
            f"<Checkpoint {short_path(self.path)}: {len(self.tensors):,} tensors, "
            f"{entries:,} entries, {shards}>"
        )

    @property
    def folder(self) -> Path:
        """The folder with the configuration and the tokenizer."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> list[Path]:
        """Every file that decides what the model computes: shards, and `files_beside` them."""
        return [*self.headers, *files_beside(self.folder).values()]

    def __getitem__(self, name: str) -> TensorEntry:
        """Look up a tensor by its stored name.

        Returns:
            Its dtype, shape and position in a shard.

        Raises:
            CheckpointError: there is no such tensor; the message lists the most similar names.
        """
        if name in self.tensors:
            return self.tensors[name]
        similar = similar_names(name, self.tensors, 3, 0.4)
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise CheckpointError(f"{self.path}: no tensor {name!r}{hint}")

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The contents of `config.json`; {} if there is no such file."""
        file = self.folder / "config.json"
        return read_settings(file) if file.is_file() else {}

    def read(self, name: str) -> Tensor:
        """Read one floating-point tensor into memory.

        Args:
            name: the stored name.

        Returns:
            The tensor, on the CPU, in its stored shape and dtype.

        Raises:
            CheckpointError: there is no such tensor, or its file cannot be read.
        """
        entry = self[name]
        out = torch.empty(entry.numel, dtype=torch_dtype(entry))
        TensorReader().read(entry, 0, out)
        return out.view(entry.shape)

    def compute_fingerprints(self, advance: Callable[[int], object] = lambda blocks: None) -> None:
        """Fingerprint every shard that has not been fingerprinted yet.

        Args:
            advance: called with the number of blocks read (of `fingerprint.BLOCK` bytes each).

        Raises:
            CheckpointError: a shard cannot be read, or changes while it is being read.
        """
        for file in self.headers:
            if file not in self._fingerprints:
                self._fingerprints[file] = fingerprint_of(file, advance)

    @property
    def fingerprint(self) -> str:
        """A hash of every byte of the weights, shard by shard, independent of the names of folder
        and shards and of file times.

        Raises:
            CheckpointError: a shard cannot be read, or changes while it is being read.
        """
        self.compute_fingerprints()
        prints = list(self._fingerprints.values())
        return prints[0] if len(prints) == 1 else checksum(" ".join(prints).encode())

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Fingerprints of everything that decides what the model computes: of the weights under
        `weights`, and of the files beside them (`files_beside`) under their names."""
        beside = files_beside(self.folder).items()
        return {"weights": self.fingerprint, **{name: fingerprint_of(f) for name, f in beside}}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint for reading; only the headers are read.

    Args:
        path: a folder with `model.safetensors`, or with an index and its shards; or a single
            safetensors file.

    Returns:
        The checkpoint: tensors by name, in the order of their bytes.

    Raises:
        CheckpointError: the path does not exist or holds no safetensors file; the index names
            shards that do not exist; a file does not match its header; or there is no
            floating-point tensor.

    Example:
        >>> checkpoint = open_checkpoint("base")
        >>> len(checkpoint.tensors) > 0
        True
        >>> name, entry = next(iter(checkpoint.tensors.items()))
        >>> tuple(checkpoint.read(name).shape) == entry.shape
        True
    """
    with collection_paused():
        return _open(Path(path))


def _open(path: Path) -> Checkpoint:
    if os.path.isfile(path):
        if path.suffix != ".safetensors":
            raise CheckpointError(_with_advice(f"{path}: not a safetensors file.", path))
        return _with_floats(Checkpoint(path, [path]))
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such file or folder")
    # The same precedence as transformers', so that a study loads the weights that were paired.
    if os.path.isfile(path / SINGLE):
        return _with_floats(Checkpoint(path, [path / SINGLE]))
    if os.path.isfile(path / INDEX):
        return _with_floats(_open_indexed(path))
    return _with_floats(Checkpoint(path, [_only_file(path)]))


def _with_floats(checkpoint: Checkpoint) -> Checkpoint:
    if not any(entry.dtype in FLOATS for entry in checkpoint.tensors.values()):
        dtypes = sorted({entry.dtype for entry in checkpoint.tensors.values()})
        if not dtypes:
            raise CheckpointError(f"{checkpoint.path}: no tensor in it at all")
        raise CheckpointError(
            f"{checkpoint.path}: no floating-point tensor ({', '.join(dtypes)}). Integer "
            "and quantized weights have no delta: use the checkpoint from before quantization."
        )
    return checkpoint


def is_adapter(path: Path) -> bool:
    """Tell whether a folder holds a PEFT adapter without a whole model.

    Returns:
        True if there is an adapter's weights file, and neither `model.safetensors` nor its index.
    """
    whole_model = (path / SINGLE, path / INDEX)
    return (path / ADAPTER).is_file() and not any(file.is_file() for file in whole_model)


def _only_file(path: Path) -> Path:
    if is_adapter(path):
        raise CheckpointError(
            f"{path}: a PEFT adapter, not a whole model; merge it into its base first (`drop` at "
            "rate 0 with `merge_adapter` writes and checks a merged checkpoint)"
        )
    try:
        contents = sorted(path.iterdir())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    files = [file for file in contents if file.suffix == ".safetensors"]
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{path}: {len(files)} safetensors files, and no {INDEX} to say which belong together; "
            "name one of the files, or add the index"
        )
    pickled = [file for file in contents if file.suffix in _PICKLES]
    if pickled:
        raise CheckpointError(
            _with_advice(
                f"{path}: only pickled weights ({pickled[0].name}), which can run code when "
                "loaded.",
                pickled[0],
            )
        )
    raise CheckpointError(
        f"{path}: no safetensors file in this folder; name the folder that holds {SINGLE}, or "
        f"{INDEX} and its shards"
    )


def _with_advice(problem: str, file: Path) -> str:
    """The problem with a file that is not a safetensors file, and what to do about it."""
    if file.suffix not in _PICKLES:
        return f"{problem} Name a folder with a model in it, or a .safetensors file"
    pickled, converted = str(file.parent.absolute()), f"{file.parent.absolute()}-st"
    return Lines(
        f"{problem} If you trust the file, convert its folder once:",
        '  python -c "from transformers import AutoModelForCausalLM as M; '
        f'M.from_pretrained({pickled!r}).save_pretrained({converted!r})"',
    )


def _open_indexed(path: Path) -> Checkpoint:
    file = path / INDEX
    names = read_settings(file).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{file}: no weight_map, which says which shard holds each tensor")
    shards = {shard for shard in names.values() if isinstance(shard, str)}
    absent = {shard: why for shard in shards if (why := _shard_fault(path, shard))}
    faults = [
        f"{name!r} is in {shard!r}, {why}"
        for name, shard in names.items()
        if (why := absent.get(shard) if isinstance(shard, str) else _NOT_SAFETENSORS)
    ]
    if faults:
        raise CheckpointError(
            fault_list(f"{file} names shards that are missing; is the download complete?", faults)
        )
    files = {shard: path / shard for shard in sorted(shards)}
    checkpoint = Checkpoint(path, list(files.values()))
    differing = [
        f"{name!r} is not in {shard!r}"
        for name, shard in names.items()
        if name not in checkpoint.tensors or checkpoint.tensors[name].file is not files[shard]
    ]
    differing += [f"{name!r} is in a shard only" for name in checkpoint.tensors.keys() - names]
    if differing:
        checkpoint.notes.append(
            f"{file}: the index does not match the shards ({_first_few(sorted(differing))}); the "
            "shards are used as they are, as transformers does"
        )
    return checkpoint


def _first_few(faults: list[str]) -> str:
    more = f" and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
    return ", ".join(textwrap.shorten(fault, 200) for fault in faults[:_MOST_NAMED]) + more


def _shard_fault(folder: Path, shard: str) -> str | None:
    """Why a name in an index is not a usable shard; None if it is."""
    if not shard.endswith(".safetensors"):
        return _NOT_SAFETENSORS
    if set("/\\\0") & set(shard):
        return "which is not the name of a file in this folder"
    return None if os.path.isfile(folder / shard) else "which is not in this folder"
