"""What a probe costs a training step, beside TensorBoard's histograms and wandb.watch."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deltalens import GradientProbe

BLOCKS = 10
STEPS = 5
PEER_STEPS = 2
PROBES: dict[str, dict[str, Any]] = {
    "histograms": {"mask_ratios": (), "overlap": False},
    "thresholds": {"overlap": False},
    "overlap": {},
    "overlap-every-10": {},
}


def run() -> None:
    """A 30 M Llama in fp32, 1,024 tokens a step, AdamW: blocks of bare steps and of watched ones in
    turn, 50 steps of each.

    Ours is the time inside the hooks; the share is of as many bare steps, the spread over blocks. A
    peer's is the time of its own call, or the difference of steps where it hooks the backward pass.
    """
    torch.manual_seed(0)
    training = Training()
    training.steps(2)
    bare: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in (*PROBES, "tensorboard", "wandb")}
    turn = _Turn()
    with tempfile.TemporaryDirectory(prefix="deltalens-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        probes = {
            name: stack.enter_context(
                GradientProbe(training.model, folder / name, every=turn.of(name), **spec)
            )
            for name, spec in PROBES.items()
        }
        for _ in range(BLOCKS):
            bare.append(training.steps(STEPS))
            for name, probe in probes.items():
                before, turn.now = probe.seconds, name
                training.steps(STEPS)
                seconds[name].append((probe.seconds - before) / STEPS)
            turn.now = ""
            seconds["tensorboard"].append(_tensorboard(training, folder))
            seconds["wandb"].append(_wandb(training, folder))
    for name, spent in seconds.items():
        report(f"probe-{name}" if name in PROBES else name, spent, bare)


class _Turn:
    """Whose block it is."""

    def __init__(self) -> None:
        self.now = ""
        self._seen = 0

    def of(self, name: str) -> Callable[[int], bool]:
        """A schedule: every step of this one's blocks; every tenth, if its name says so."""
        apart = 10 if name.endswith("every-10") else 1

        def due(step: int) -> bool:
            if self.now != name:
                return False
            self._seen += 1
            return self._seen % apart == 0

        return due


class Training:
    """A model, its optimizer, and random tokens."""

    def __init__(self) -> None:
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8192,
                hidden_size=512,
                intermediate_size=1376,
                num_hidden_layers=8,
                num_attention_heads=8,
                max_position_embeddings=256,
                tie_word_embeddings=True,
            )
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def steps(self, count: int, before: Callable[[], None] = lambda: None) -> float:
        """Seconds a step, what is done before each included."""
        begun = time.perf_counter()
        for _ in range(count):
            ids = torch.randint(0, 8192, (4, 256))
            self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            before()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return (time.perf_counter() - begun) / count


def _tensorboard(training: Training, folder: Path) -> float:
    """Seconds in `add_histogram` for every gradient, per step."""
    from torch.utils.tensorboard import SummaryWriter

    spent = 0.0
    writer = SummaryWriter(str(folder / "tensorboard"))

    def log() -> None:
        nonlocal spent
        begun = time.perf_counter()
        for name, parameter in training.model.named_parameters():
            writer.add_histogram(name, parameter.grad, 0)
        spent += time.perf_counter() - begun

    training.steps(PEER_STEPS, log)
    writer.close()
    return spent / PEER_STEPS


def _wandb(training: Training, folder: Path) -> float:
    """Seconds that `wandb.watch(log_freq=1)` adds: it hooks the backward pass, so a difference."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    bare = training.steps(PEER_STEPS)
    run = wandb.init(mode="offline", dir=str(folder), project="bench")
    run.watch(training.model, log="gradients", log_freq=1)
    watched = training.steps(PEER_STEPS, lambda: run.log({"step": 0}))
    run.unwatch(training.model)
    run.finish()
    return max(0.0, watched - bare)


def report(name: str, seconds: list[float], bare: list[float]) -> None:
    shares = sorted(own / step for own, step in zip(seconds, bare, strict=True))
    low, high = shares[len(shares) // 10], shares[-1 - len(shares) // 10]
    line = {
        "name": name,
        "seconds": round(sum(seconds) / len(seconds), 4),
        "bare_step": round(sum(bare) / len(bare), 4),
        "share_of_step": round(sum(seconds) / sum(bare), 4),
        "share_p10_p90": [round(low, 4), round(high, 4)],
    }
    print(json.dumps(line), flush=True)
