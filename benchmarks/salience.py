"""What salience costs, beside plain forward and backward passes over the same batches."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import interleaved
from deltalens.methods.salience import choose_targets, salience

ROUNDS = 3
BATCHES = 6
WAYS: dict[str, dict[str, Any]] = {
    "gradient": {"metric": "gradient"},
    "first-order": {"metric": ["gradient", "snip", "force", "taylor-fo"]},
    "fisher": {"metric": "fisher"},
    "grasp-exact": {"metric": "grasp"},
    "grasp-exact-outside": {"metric": "grasp", "expectation": "outside"},
    "grasp-difference": {"metric": "grasp", "hessian": "difference"},
}


def run() -> None:
    """A 30 M Llama in fp32, batches of 4 x 128 tokens, two threads: each metric of its attention
    weights, and plain passes that give the same weights a gradient, in turn. What comes out is how
    often the time of the plain passes a metric takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for targets in ("attention", "linear"):
            _compare(targets)
    finally:
        torch.set_num_threads(threads)


def _compare(targets: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
    ).eval()
    ids = torch.randint(0, 8192, (BATCHES, 4, 128))
    batches = [{"input_ids": rows, "labels": rows} for rows in ids]
    model.requires_grad_(False)
    weights = [layer.module.get_parameter("weight") for layer in choose_targets(model, targets)]

    def plain() -> None:
        for weight in weights:
            weight.requires_grad_(True)
        for batch in batches:
            model(**batch, use_cache=False).loss.backward()
            for weight in weights:
                weight.grad = None
        model.requires_grad_(False)

    def measured(settings: dict[str, Any]) -> Callable[[], object]:
        return lambda: salience(model, batches, targets=targets, steps=BATCHES, **settings)

    contestants = {name: measured(settings) for name, settings in WAYS.items()}
    seconds = interleaved({"plain": plain, **contestants}, ROUNDS)
    for name in WAYS:
        ratios = sorted(
            ours / theirs for ours, theirs in zip(seconds[name], seconds["plain"], strict=True)
        )
        line = {
            "name": f"salience-{name}-{targets}",
            "ours": round(statistics.median(seconds[name]), 4),
            "plain": round(statistics.median(seconds["plain"]), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            "rounds": len(ratios),
            "cores": os.cpu_count(),
        }
        print(json.dumps(line), flush=True)
