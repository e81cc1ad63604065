"""What an interactive session shows of the objects that people make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import GradientMask, GradientProbe, HalfFreeze, MaskTuning, RandomMask
from deltalens.integrations.transformers import GradientProbeCallback
from deltalens.methods.weight_masks import random_weight_mask


def block() -> nn.Module:
    return nn.Sequential(nn.ModuleDict({"q_proj": nn.Linear(8, 8), "up_proj": nn.Linear(8, 8)}))


OBJECTS = {
    "<GradientMask of Sequential: mask_ratio=0.3, scope=tensor, apply_to=gradient; not attached, "
    "0 steps>": lambda model: GradientMask(model, "0.3"),
    "<RandomMask of Sequential: mask_ratio=0.25, seed=5, apply_to=update; not attached, "
    "0 steps>": lambda model: RandomMask(model, "0.25", seed=5, apply_to="update"),
    "<HalfFreeze of Sequential: frozen=0 parameters; not attached, 0 steps>": HalfFreeze,
    "<GradientProbe of Sequential: log_dir=run, scope=tensor, mask_ratios=[0.2, 0.5, 0.9]; "
    "not attached, 0 steps>": lambda model: GradientProbe(model, "run"),
    "<MaskTuning of Sequential: 2 masked layers with 128 weights>": MaskTuning,
    "<WeightMasks of 2 layers, method 'random'>": random_weight_mask,
    "<GradientProbeCallback: not attached yet>": lambda model: GradientProbeCallback("run"),
}


@pytest.mark.parametrize("shown", OBJECTS)
def test_an_object_says_what_it_is(shown: str) -> None:
    made: Any = OBJECTS[shown](block())
    assert repr(made) == shown
    if isinstance(made, MaskTuning):
        made.detach()


def test_it_says_whether_it_works(tmp_path: Path) -> None:
    model = block()
    with GradientMask(model, 0.5) as mask:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(model.parameters(), 0.1).step()
        assert repr(mask).endswith("; attached, 1 steps>")
    tuning = MaskTuning(model)
    tuning.detach()
    assert repr(tuning) == "<MaskTuning of Sequential: merged or detached>"


def test_long_settings_are_cut(tmp_path: Path) -> None:
    ratios = [number / 1000 for number in range(1000)]
    probe = GradientProbe(block(), tmp_path / ("x" * 255) / ("y" * 255), mask_ratios=ratios)
    assert len(repr(probe)) < 400
