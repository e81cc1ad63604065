"""A tiny checkpoint with a tokenizer, and rows to train on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deltalens.demo.model import build_tokenizer
from deltalens.demo.recipe import DEFAULT_RECIPE


def write_model(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(DEFAULT_RECIPE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
