"""Parameters and gradients of every kind: logged, or passed over by name; a probe never ends a
training, and masks say what they cannot mask."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from deltalens import GradientMask, GradientProbe, HalfFreeze, RandomMask, load_run
from deltalens.cli.main import app


class Odd(nn.Module):
    """A sparse embedding, a linear layer, and whatever else is asked for."""

    def __init__(self, *parts: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 8, sparse="sparse" in parts)
        self.layers = nn.ModuleList([nn.Linear(8, 8)])
        if "complex" in parts:
            self.phase = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        if "empty" in parts:
            self.empty = nn.Parameter(torch.empty(0, 8))
        if "scalar" in parts:
            self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.layers[0](self.embed(ids))
        if hasattr(self, "phase"):
            hidden = (hidden * self.phase).abs()
        if hasattr(self, "empty"):
            hidden = hidden + self.empty.sum()
        if hasattr(self, "scale"):
            hidden = hidden * self.scale
        return hidden.square().mean()


def optimizer_of(model: Odd) -> torch.optim.Optimizer:
    if model.embed.sparse:
        return torch.optim.SGD(model.parameters(), 0.5)
    return torch.optim.AdamW(model.parameters(), 1e-2)


Seen = list[dict[str, tuple[Tensor, float]]]


def train(model: Odd, steps: int = 3) -> Seen:
    """For each step and tensor, its dense gradient and the share of entries that moved."""
    optimizer, seen = optimizer_of(model), []
    for number in range(steps):
        optimizer.zero_grad()
        model(
            torch.randint(0, 30, (16,), generator=torch.Generator().manual_seed(number))
        ).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        dense = {
            name: p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
        optimizer.step()
        seen.append(
            {
                name: (dense[name], float((p != before[name]).float().mean()))
                for name, p in model.named_parameters()
            }
        )
    return seen


KINDS = [
    ("sparse",),
    ("complex",),
    ("empty",),
    ("scalar",),
    ("sparse", "complex", "empty", "scalar"),
]


@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
@pytest.mark.parametrize("parts", KINDS, ids="+".join)
def test_a_probe_logs_what_it_can(tmp_path: Path, parts: tuple[str, ...], scope: str) -> None:
    plain, watched = Odd(*parts), Odd(*parts)
    train(plain)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with GradientProbe(watched, tmp_path / "run", updates=True, scope=scope) as probe:
            seen = train(watched)
    for name, value in plain.named_parameters():
        assert torch.equal(value, watched.get_parameter(name)), name
    assert probe.steps == 3
    named = [one for one in told if "cannot rank these gradients" in str(one.message)]
    assert len(named) == len(told) == ("complex" in parts)
    assert all("phase (complex64)" in str(one.message) for one in named)
    run = load_run(tmp_path / "run")
    assert run.facts.get("passed_over", {}) == ({"phase": "complex64"} if named else {})
    names = {name for name, _ in watched.named_parameters()} - {"phase"}
    assert set(run.tensors.tensor) == names
    for row in run.tensors.itertuples():
        gradient, moved = seen[row.step][row.tensor]
        assert row.norm == pytest.approx(float(gradient.double().norm()), rel=1e-5)
        assert row.zeros == int((gradient == 0).sum())
        if gradient.numel():
            assert row.bits_changed == pytest.approx(moved)
        else:
            assert np.isnan([row.bits_changed, row.stalled, row.mean]).all()


def test_monitor_shows_such_a_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Odd(*KINDS[-1])
        with GradientProbe(model, tmp_path / "run", updates=True):
            train(model)
    shown = CliRunner().invoke(app, ["monitor", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    assert "3 steps logged" in shown.output


MASKS: dict[str, Callable[..., Any]] = {
    "gradient": lambda m: GradientMask(m, 0.5, apply_to="update", exclude="embed"),
    "layer": lambda m: GradientMask(m, 0.5, scope="layer", exclude="embed"),
    "random": lambda m: RandomMask(m, 0.5, apply_to="update", exclude="embed"),
}


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("parts", KINDS, ids="+".join)
def test_masks_mask_the_rest_and_say_what_they_cannot(parts: tuple[str, ...], make: Any) -> None:
    model = Odd(*parts)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with make(model) as mask:
            train(model)
    assert mask.steps == 3
    found = [str(one.message) for one in told]
    assert len(found) == ("complex" in parts)
    assert all("are trained densely:\n  - phase (complex64)" in text for text in found)


@pytest.mark.parametrize("parts", KINDS, ids="+".join)
def test_whole_tensors_are_frozen_whatever_they_hold(parts: tuple[str, ...]) -> None:
    model = Odd(*parts)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with HalfFreeze(model) as freeze:
        train(model)
    still = {
        name for name, p in model.named_parameters() if p.numel() and torch.equal(p, before[name])
    }
    assert still == freeze.frozen
