"""Small checkpoints, sound and damaged; some shards are written by hand, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.support.models import save as save_model
from tests.support.models import tiny

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def shard_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand: the header's length, the header as JSON (or as given), data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def f32(begin: int = 0, entries: int = 2, **changed: object) -> dict[str, object]:
    """A header's entry of a 1-D fp32 tensor."""
    place = [begin, begin + 4 * entries]
    return {"dtype": "F32", "shape": [entries], "data_offsets": place, **changed}


def folder_with(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """A folder with these files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(raw)
    return folder


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Four tensors of a two-block model."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (6, 4),
        "model.layers.0.mlp.weight": (4, 4),
        "model.layers.1.mlp.weight": (4, 4),
        "model.norm.weight": (4,),
    }
    return {n: torch.randn(shape, generator=draws).to(dtype) for n, shape in shapes.items()}


def tuned(base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every weight moved a little."""
    return {name: tensor + 0.01 * (1 + tensor.abs()) for name, tensor in base.items()}


def save(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] = {}) -> Path:
    """A folder with one file, written by the safetensors library."""
    folder_with(folder, {"config.json": json.dumps(config)})
    save_file(dict(tensors), folder / SINGLE, metadata={"format": "pt"})
    return folder


def save_sharded(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A folder with two shards and an index."""
    folder_with(folder, {"config.json": "{}"})
    names = list(tensors)
    halves = dict(zip(SHARDS, (names[: len(names) // 2], names[len(names) // 2 :]), strict=True))
    for shard, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    write_index(folder, {name: shard for shard, held in halves.items() for name in held})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    """An index that says this."""
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_llama_pair(folder: Path) -> tuple[Path, Path]:
    """A one-block Llama and its fine-tune, with a tokenizer, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz ?")}
    vocabulary = {"<s>": 28, "</s>": 29, **letters}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="?"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny(
            "llama",
            vocab_size=30,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_key_value_heads=2,
            max_position_embeddings=32,
            bos_token_id=28,
            eos_token_id=29,
        )
    paths = folder / "ft", folder / "base"
    for path in reversed(paths):
        save_model(model, path, tokens=tokens)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
    return paths


def left_in(folder: Path) -> set[str]:
    """Everything that lies in a folder, hidden or not, at any depth."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
