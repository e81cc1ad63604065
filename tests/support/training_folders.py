"""A tiny checkpoint with a tokenizer, and rows to train on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deltalens.demo.model import build_tokenizer
from deltalens.demo.recipe import DEFAULT_RECIPE
from tests.support.models import demo_llama, save


def write_model(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    return save(demo_llama(dtype), folder, tokens=build_tokenizer(DEFAULT_RECIPE))


def write_rows(file: Path, rows: Sequence[dict[str, Any]] | None = None) -> Path:
    if rows is None:
        rows = [{"prompt": f"{i}+{i % 7}=", "completion": str(i + i % 7)} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def preferences() -> list[dict[str, Any]]:
    return [
        {"prompt": f"{i}+{i % 7}=", "chosen": str(i + i % 7), "rejected": str(i)}
        for i in range(1, 20)
    ]


def comparisons(count: int = 40, *, names: bool = False) -> list[dict[str, Any]]:
    """Pairs of sentences, and whether the first is a greater number."""
    rows = []
    for i in range(count):
        first, second = i * 7 % 20, i * 13 % 18
        greater = int(first > second)
        label = ("less", "more")[greater] if names else greater
        rows.append({"sentence1": f"{first}+0", "sentence2": str(second), "label": label})
    return rows


def scores(count: int = 40) -> list[dict[str, Any]]:
    """Single sentences, and their lengths in tens."""
    return [{"sentence": "1" * (1 + i % 9), "label": (1 + i % 9) / 10} for i in range(count)]
