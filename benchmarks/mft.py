"""What a step of Mask Fine-Tuning costs, beside a step that trains the same weights densely."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import AT_ONCE, run_process
from deltalens import MaskTuning
from deltalens.numerics.selection import compile_loops

ROUNDS = 15
BLOCKS = range(4, 8)
KINDS: dict[str, dict[str, Any]] = {
    "magnitude": {},
    "value": {"rank_by": "value"},
    "threshold": {"threshold": -0.035},
}


def run() -> None:
    """A 111 M Llama in fp32, 2 x 256 tokens a step, AdamW over four of eight blocks: one dense step
    and one masked step in turn, the ratio taken turn by turn. Then the peak memory of three steps
    of each, in processes of their own.
    """
    sides = {"dense": Steps("dense"), **{kind: Steps(kind) for kind in KINDS}}
    seconds: dict[str, list[float]] = {kind: [] for kind in sides}
    for turn in range(ROUNDS + 2):
        for kind, side in sides.items():
            spent = side.step()
            if turn > 1:
                seconds[kind].append(spent)
    for kind in KINDS:
        _report(kind, seconds[kind], seconds["dense"])
    _memory()


class Steps:
    """A model and its optimizer: over the linear weights of four blocks, or over their scores."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8192,
                hidden_size=1024,
                intermediate_size=2816,
                num_hidden_layers=8,
                num_attention_heads=16,
                max_position_embeddings=256,
                tie_word_embeddings=True,
            )
        )
        if kind == "dense":
            self.model.requires_grad_(False)
            trained = [
                parameter.requires_grad_(True)
                for block in BLOCKS
                for parameter in self.model.model.layers[block].parameters()
                if parameter.dim() == 2
            ]
        else:
            trained = MaskTuning(self.model, blocks=list(BLOCKS), **KINDS[kind]).parameters()
        self.weights = sum(parameter.numel() for parameter in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(self) -> float:
        """Seconds of one."""
        ids = torch.randint(0, 8192, (2, 256))
        begun = time.perf_counter()
        self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - begun


def _report(kind: str, ours: list[float], dense: list[float]) -> None:
    ratios = sorted(mine / theirs for mine, theirs in zip(ours, dense, strict=True))
    line = {
        "name": f"mft-step-{kind}",
        "ours": round(statistics.median(ours), 4),
        "dense": round(statistics.median(dense), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10_p90": [round(ratios[int(q * (len(ratios) - 1))], 3) for q in (0.1, 0.9)],
        "steps": len(ratios),
        "cores": os.cpu_count(),
    }
    print(json.dumps(line), flush=True)


def _memory() -> None:
    program = "import sys; from benchmarks.mft import steps; steps(sys.argv[1])"
    peaks = {
        kind: run_process([sys.executable, "-c", program, kind], AT_ONCE).peak_mb
        for kind in ("dense", "magnitude")
    }
    weights = Steps("dense").weights
    line = {
        "name": "mft-peak-memory",
        "ours_mb": round(peaks["magnitude"]),
        "dense_mb": round(peaks["dense"]),
        "difference_mb": round(peaks["magnitude"] - peaks["dense"]),
        "frozen_weights_masked_copy_and_bits_mb": round(weights * (4 + 4 + 1 / 8) / 1e6),
    }
    print(json.dumps(line), flush=True)


def steps(kind: str) -> None:
    """Three steps of a kind, for the memory of this process. What compiles our kernels is in it
    either way."""
    compile_loops(torch.float32)
    side = Steps(kind)
    for _ in range(3):
        side.step()
