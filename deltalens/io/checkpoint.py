"""A folder of safetensors shards, opened lazily: an index first, then tensors by byte range."""

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
_NO_SHARD = "which is no .safetensors file"
_SHOWN = 3
"""Differences between an index and its shards that a note names."""


class Checkpoint:
    """A checkpoint on disk: what it holds and where. Opening reads headers only.

    Attributes:
        path: the folder, or the one file.
        tensors: every stored tensor by name, shard by shard, in the order of the bytes.
        headers: the raw header of each shard file.
        notes: what a reader should know of it.
    """

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self.headers: dict[Path, bytes] = {}
        self.tensors: dict[str, TensorEntry] = {}
        self.notes: list[str] = []
        self._prints: dict[Path, str] = {}
        for file in files:
            self.headers[file], entries = read_header(file)
            for entry in entries:
                other = self.tensors.setdefault(entry.name, entry)
                if other is not entry:
                    raise CheckpointError(
                        f"{path}: tensor {entry.name!r} is in {other.file.name} and in {file.name}"
                    )

    @property
    def folder(self) -> Path:
        """The folder with the configuration and the tokenizer."""
        return self.path if self.path.is_dir() else self.path.parent

    def __getitem__(self, name: str) -> TensorEntry:
        """The tensor of this name.

        Raises:
            CheckpointError: there is none; the message shows the nearest names.
        """
        if name in self.tensors:
            return self.tensors[name]
        near = similar_names(name, self.tensors, 3, 0.4)
        raise CheckpointError(f"{self.path}: no tensor {name!r}; nearest: {', '.join(near)}")

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, or {} where there is none."""
        file = self.folder / "config.json"
        return read_settings(file) if file.is_file() else {}

    def read(self, name: str) -> Tensor:
        """One floating-point tensor, whole."""
        entry = self[name]
        out = torch.empty(entry.numel, dtype=torch_dtype(entry))
        TensorReader().read(entry, 0, out)
        return out.view(entry.shape)

    def read_through(self, advance: Callable[[int], object] = lambda blocks: None) -> None:
        """Take the fingerprint of every shard that has none yet; `advance` is told of each block
        (`fingerprint.BLOCK` bytes)."""
        for file in self.headers:
            if file not in self._prints:
                self._prints[file] = fingerprint_of(file, advance)

    @property
    def fingerprint(self) -> str:
        """A hash of every byte of the weights, shard by shard. Shard names, folder and time do not
        enter.

        Raises:
            CheckpointError: a shard cannot be read, or changes while it is.
        """
        self.read_through()
        prints = list(self._prints.values())
        return prints[0] if len(prints) == 1 else checksum(" ".join(prints).encode())

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What decides every number that the model gives, with fingerprints: `weights`, and by name
        the files beside them that say how to use them (`files_beside`)."""
        beside = files_beside(self.folder).items()
        return {"weights": self.fingerprint, **{name: fingerprint_of(f) for name, f in beside}}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint: a folder with `model.safetensors` or an index and shards, or one file.

    Raises:
        CheckpointError: no such path, no safetensors in it, an index that names shards that are not
            there, a file that is not what its header says, or no floating-point tensor at all.
    """
    with collection_paused():
        return _open(Path(path))


def _open(path: Path) -> Checkpoint:
    if os.path.isfile(path):
        if path.suffix != ".safetensors":
            raise CheckpointError(_instead(f"{path}: not a safetensors file.", path))
        return _with_floats(Checkpoint(path, [path]))
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such file or folder")
    # In the order of transformers, so that a study loads what was paired.
    if os.path.isfile(path / SINGLE):
        return _with_floats(Checkpoint(path, [path / SINGLE]))
    if os.path.isfile(path / INDEX):
        return _with_floats(_open_indexed(path))
    return _with_floats(Checkpoint(path, [_only_file(path)]))


def _with_floats(checkpoint: Checkpoint) -> Checkpoint:
    if not any(entry.dtype in FLOATS for entry in checkpoint.tensors.values()):
        held = sorted({entry.dtype for entry in checkpoint.tensors.values()})
        if not held:
            raise CheckpointError(f"{checkpoint.path}: no tensor in it at all")
        raise CheckpointError(
            f"{checkpoint.path}: no floating-point tensor ({', '.join(held)}). Integer "
            "and quantized weights have no delta: use the checkpoint from before quantization."
        )
    return checkpoint


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no whole model."""
    whole = (path / SINGLE, path / INDEX)
    return (path / ADAPTER).is_file() and not any(file.is_file() for file in whole)


def _only_file(path: Path) -> Path:
    if is_adapter(path):
        raise CheckpointError(
            f"{path}: a PEFT adapter, not a whole model: merge it into its base first (`drop` at "
            "rate 0 writes a merged checkpoint, and says whether it computes the same)"
        )
    try:
        held = sorted(path.iterdir())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    files = [file for file in held if file.suffix == ".safetensors"]
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{path}: {len(files)} safetensors files and no {INDEX} that says which belong "
            "together; give one of the files, or add the index"
        )
    pickled = [file for file in held if file.suffix in _PICKLES]
    if pickled:
        raise CheckpointError(
            _instead(
                f"{path}: only pickled weights ({pickled[0].name}), which can run code when "
                "loaded.",
                pickled[0],
            )
        )
    raise CheckpointError(
        f"{path}: no safetensors file in this folder; give the one that holds {SINGLE}, or "
        f"{INDEX} and its shards"
    )


def _instead(said: str, file: Path) -> str:
    """What is wrong, and what to do."""
    if file.suffix not in _PICKLES:
        return f"{said} Give a folder with a model in it, or a .safetensors file"
    pickled, converted = str(file.parent.absolute()), f"{file.parent.absolute()}-st"
    return Lines(
        f"{said} If you trust the file, convert its folder once:",
        '  python -c "from transformers import AutoModelForCausalLM as M; '
        f'M.from_pretrained({pickled!r}).save_pretrained({converted!r})"',
    )


def _open_indexed(path: Path) -> Checkpoint:
    file = path / INDEX
    names = read_settings(file).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{file}: no weight_map")
    shards = {shard for shard in names.values() if isinstance(shard, str)}
    absent = {shard: why for shard in shards if (why := _no_shard(path, shard))}
    faults = [
        f"{name!r} is in {shard!r}, {why}"
        for name, shard in names.items()
        if (why := absent.get(shard) if isinstance(shard, str) else _NO_SHARD)
    ]
    if faults:
        raise CheckpointError(
            fault_list(f"{file} names shards that are not there; is the download complete?", faults)
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
            f"{file}: the index and the shards differ ({_few(sorted(differing))}): what the shards "
            "hold counts, as for transformers"
        )
    return checkpoint


def _few(faults: list[str]) -> str:
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return ", ".join(textwrap.shorten(fault, 200) for fault in faults[:_SHOWN]) + more


def _no_shard(folder: Path, shard: str) -> str | None:
    """Why an index cannot mean this by a shard; None where it can."""
    if not shard.endswith(".safetensors"):
        return _NO_SHARD
    if set("/\\\0") & set(shard):
        return "which is not a name in this folder"
    return None if os.path.isfile(folder / shard) else "which is not in this folder"
