"""Trainings in a few lines, and what a run of one must hold."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from deltalens import load_run
from tests.support.oracles import gradients as oracle

STEPS = 4


class Net(nn.Module):
    """An embedding tied to the output, two blocks, and a weight that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.idle = nn.Linear(3, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        logits: Tensor = self.head(hidden)
        return logits


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batches(seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, 11, (6, 5), generator=generator)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids).float()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


Seen = list[dict[str, Tensor]]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = STEPS,
    accumulate: int = 1,
    clip: float | None = None,
) -> Seen:
    """Train, and keep the gradients that each optimizer step was given."""
    seen, data = [], batches()
    for _ in range(steps):
        for ids in itertools.islice(data, accumulate):
            (loss_of(model, ids) / accumulate).backward()
        if clip is not None:
            clip_grad_norm_(model.parameters(), clip)
        seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    return seen


def check(run: Path, seen: Seen, ratios: tuple[float, ...] = (0.2, 0.5, 0.9)) -> None:
    """Every number of a run is the twin's on these gradients."""
    record = load_run(run)
    assert sorted(set(record.tensors.step)) == list(range(len(seen)))
    first: dict[tuple[str, float], oracle.Mask] = {}
    before: dict[tuple[str, float], oracle.Mask] = {}
    ever: dict[tuple[str, float], oracle.Mask] = {}
    for step, grads in enumerate(seen):
        rows = record.tensors[record.tensors.step == step].set_index("tensor")
        bins = record.histograms[record.histograms.step == step]
        masks = record.masks[record.masks.step == step].set_index(["tensor", "mask_ratio"])
        assert set(rows.index) == set(grads)
        for name, grad in grads.items():
            row = rows.loc[name]
            assert row.entries == grad.numel()
            assert row.norm == pytest.approx(oracle.norm(grad), rel=1e-5)
            assert row["mean"] == pytest.approx(oracle.mean(grad), rel=1e-5)
            for column, count in oracle.counted_apart(grad).items():
                assert row[column] == count
            mine = bins[bins.tensor == name]
            found = dict(zip(zip(mine.low, mine.high, strict=True), mine["count"], strict=True))
            assert found == oracle.octaves(grad)
            for ratio in ratios:
                key, row = (name, ratio), masks.loc[(name, ratio)]
                mask = oracle.mask({name: grad}, ratio)
                assert row.threshold == oracle.threshold({name: grad}, ratio)
                assert row.kept == len(mask)
                first.setdefault(key, mask)
                ever[key] = ever.get(key, set()) | mask
                assert row.coverage == pytest.approx(len(ever[key]) / grad.numel())
                assert row.jaccard_first == pytest.approx(oracle.jaccard(mask, first[key])) or (
                    step == 0 and math.isnan(row.jaccard_first)
                )
                if step:
                    last = before[key]
                    assert row.jaccard_previous == pytest.approx(oracle.jaccard(mask, last))
                    assert row.containment_previous == pytest.approx(oracle.containment(mask, last))
                    assert row.chance_previous == pytest.approx(
                        oracle.chance(mask, last, grad.numel())
                    )
                before[key] = mask
