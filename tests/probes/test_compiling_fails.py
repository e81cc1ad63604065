"""Where a loop cannot be compiled, nothing is left of what was about to begin."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import GradientProbe, MaskTuning
from deltalens.integrations.transformers import GradientMaskCallback
from deltalens.methods import mft
from deltalens.probes import gradient
from deltalens.training.run import train
from tests.support.clean_hooks import hook_count
from tests.support.specs import training_spec
from tests.support.training_folders import write_model, write_rows


def fail(*given: Any) -> None:
    raise RuntimeError("no compiler")


def test_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    monkeypatch.setattr(gradient, "compile_loops", fail)
    probe, before = GradientProbe(model, tmp_path / "new" / "run"), hook_count()
    with pytest.raises(RuntimeError, match="no compiler"):
        probe.attach()
    assert not (tmp_path / "new").exists()
    assert hook_count() == before
    monkeypatch.undo()
    with probe:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    assert probe.steps == 1


def test_masks_of_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "model"))
    before = {name: p for name, p in model.named_parameters()}
    model.lm_head.weight.requires_grad_(False)
    trained = [p.requires_grad for p in before.values()]
    for broken, name in ((mft, "compile_keep_loops"), (mft.straight_through, "compile_loops")):
        with monkeypatch.context() as patched:
            patched.setattr(broken, name, fail)
            with pytest.raises(RuntimeError, match="no compiler"):
                MaskTuning(model)
        after = dict(model.named_parameters())
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
        assert [p.requires_grad for p in after.values()] == trained
        assert not any(module._forward_hooks for module in model.modules())


def test_a_training_with_a_mask_and_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask is attached before the probe cannot be."""
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    attached: list[Any] = []
    before = hook_count()
    build = GradientMaskCallback.build

    def remembered(callback: GradientMaskCallback, *given: Any) -> Any:
        attached.append(build(callback, *given))
        return attached[-1]

    monkeypatch.setattr(GradientMaskCallback, "build", remembered)
    monkeypatch.setattr(gradient, "compile_loops", fail)
    spec = training_spec("gmt", mask_ratio="0.5", steps=1, batch_size=4)
    with pytest.raises(RuntimeError, match="no compiler"):
        train(model, rows, tmp_path / "new" / "out", spec, probe={})
    assert len(attached) == 1
    assert hook_count() == before
    assert not (tmp_path / "new").exists()
