"""LoRA leaves its adapter beside the merged model, and trackers are told of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import deltalens

pytestmark = pytest.mark.parity

QUICK = {"steps": 2, "learning_rate": 1e-2, "batch_size": 4}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 19)[None]).logits
    return found


def test_the_adapter_on_the_base_is_the_merged_model(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    settings = {"lora_rank": 4, "lora_dropout": 0.0}
    training = deltalens.train("lora", base, rows, tmp_path / "lora", settings=settings, **QUICK)
    assert training.adapter == tmp_path / "lora" / "adapter"
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "lora"))
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), training.adapter
    )
    assert torch.allclose(logits(adapted), merged, atol=1e-5)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(base)), merged, atol=1e-3)


def test_other_methods_leave_no_adapter(base: Path, rows: Path, tmp_path: Path) -> None:
    training = deltalens.train("sft", base, rows, tmp_path / "sft", **QUICK)
    assert training.adapter is None
    assert not (tmp_path / "sft" / "adapter").exists()


def test_a_tracker_is_told_of_the_training(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    deltalens.train("sft", base, rows, tmp_path / "sft", report_to="tensorboard", **QUICK)
    (file,) = (tmp_path / "sft" / "tensorboard").rglob("events.*")
    logged = events.EventAccumulator(str(file.parent)).Reload()
    losses = [event.value for event in logged.Scalars("train/loss")]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
