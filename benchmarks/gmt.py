"""What Gradient-Mask Tuning costs a training step, beside plain torch's topk and kthvalue."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import AT_ONCE
from benchmarks.probe import Training, report
from deltalens import GradientMask
from deltalens.studies.efficiency import peak_mb, reset_peak

BLOCKS = 10
STEPS = 5
PEER_STEPS = 2
RATIOS = (0.2, 0.8)


def run() -> None:
    """A 30 M Llama in fp32, 1,024 tokens a step, AdamW: blocks of bare steps and of masked ones in
    turn, 50 steps of each. Both sides are the time of the masking itself; the share is of as many
    bare steps, the spread over blocks. Then the memory, in a process of its own.
    """
    torch.manual_seed(0)
    training = Training()
    training.steps(2)
    bare: list[float] = []
    seconds: dict[str, list[float]] = {}
    for _ in range(BLOCKS):
        bare.append(training.steps(STEPS))
        for ratio in RATIOS:
            for scope in ("tensor", "global"):
                with GradientMask(training.model, ratio, scope=scope) as mask:
                    training.steps(STEPS)
                seconds.setdefault(f"gmt-{scope}-{ratio}", []).append(mask.seconds / STEPS)
            for name, peer in (
                ("topk-largest", _topk(ratio, largest=True)),
                ("topk-smallest", _topk(ratio, largest=False)),
                ("kthvalue-global", _kthvalue(ratio)),
            ):
                spent = _timed(training, peer)
                seconds.setdefault(f"{name}-{ratio}", []).append(spent)
    for name, spent_ in seconds.items():
        report(name, spent_, bare)
    program = [sys.executable, "-c", "from benchmarks.gmt import memory; memory()"]
    subprocess.run(program, env=os.environ | AT_ONCE, check=True)


def memory() -> None:
    """Print what masking adds to the peak of an optimizer's steps, beside what it may add: 8 MB,
    256 KB a tensor that is ranked, one bit an entry; for `update` a copy of the parameters, and one
    bit an entry more."""
    training = Training()
    training.steps(2)
    ids = torch.randint(0, 8192, (4, 256))
    training.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    sizes = [parameter.numel() for parameter in training.model.parameters()]
    bits, copy = sum(sizes) / 8e6, sum(sizes) * 4 / 1e6
    few = 8 + bits
    allowed = {
        "tensor": (few + 0.256 * len(sizes), {}),
        "global": (few + 0.256, {"scope": "global"}),
        "update": (few + 0.256 * len(sizes) + copy + bits, {"apply_to": "update"}),
    }
    _peak(training, GradientMask(training.model, 0.2))  # Compiles what is not compiled yet.
    for name, (most, spec) in allowed.items():
        bare = _peak(training, nullcontext())
        masked = _peak(training, GradientMask(training.model, 0.2, **spec))
        line = {
            "name": f"gmt-memory-{name}",
            "added_mb": round(masked - bare, 1),
            "allowed_mb": round(most, 1),
            "copy_mb": round(copy, 1),
            "bits_mb": round(bits, 1),
        }
        print(json.dumps(line), flush=True)


def _peak(training: Training, within: AbstractContextManager[Any]) -> float:
    """MB at the peak of four steps of the optimizer, above what was there before."""
    device = torch.device("cpu")
    gc.collect()
    reset_peak(device)
    before = peak_mb(device)
    with within:
        for _ in range(4):
            training.optimizer.step()
    return peak_mb(device) - before


def _timed(training: Training, mask: Callable[[list[Tensor]], None]) -> float:
    spent = 0.0

    def before() -> None:
        nonlocal spent
        gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
        begun = time.perf_counter()
        mask(gradients)
        spent += time.perf_counter() - begun

    training.steps(PEER_STEPS, before)
    return spent / PEER_STEPS


def _topk(ratio: float, *, largest: bool) -> Callable[[list[Tensor]], None]:
    """Per tensor, in the direction that sorts less or the other."""

    def mask(gradients: list[Tensor]) -> None:
        for gradient in gradients:
            sizes = gradient.abs().view(-1)
            keep = sizes.numel() - round(ratio * sizes.numel())
            if largest:
                least = sizes.topk(keep, sorted=False).values.min()
            else:
                rest = sizes.numel() - keep + 1
                least = sizes.topk(rest, largest=False, sorted=False).values.max()
            gradient.mul_(gradient.abs() >= least)

    return mask


def _kthvalue(ratio: float) -> Callable[[list[Tensor]], None]:
    """Over all tensors together."""

    def mask(gradients: list[Tensor]) -> None:
        sizes = torch.cat([gradient.abs().view(-1) for gradient in gradients])
        least = sizes.kthvalue(round(ratio * sizes.numel()) + 1).values
        for gradient in gradients:
            gradient.mul_(gradient.abs() >= least)

    return mask
