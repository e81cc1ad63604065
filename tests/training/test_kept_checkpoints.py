"""`train --keep-checkpoints`: checkpoints as ordinary models, and a training left unchanged."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalens.catalog.methods import MethodFacts
from deltalens.errors import DeltaLensError
from deltalens.training.methods import Method
from deltalens.training.methods.base import Ready
from deltalens.training.run import TrainingWatch, train
from tests.support.specs import training_spec

METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "gmt": {"mask_ratio": "0.5"},
    "mft": {},
    "lora": {"lora_rank": 2},
    "pissa": {"lora_rank": 2},
    "speft": {"density": "0.1"},
}
KEPT = {"checkpoint_every": 2, "keep_checkpoints": True}
WEIGHTS = "model.safetensors"


def spec(**more: Any) -> Any:
    return training_spec(**{"steps": 4, "batch_size": 4, "learning_rate": 1e-2, **more})


@pytest.mark.parametrize("method", METHODS)
def test_the_last_checkpoint_is_the_result_and_the_training_the_same(
    base: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    own = spec(method=method, **METHODS[method])
    train(base, rows, tmp_path / "plain", own)
    train(base, rows, tmp_path / "out", own, **KEPT)
    result = (tmp_path / "plain" / WEIGHTS).read_bytes()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == result
    assert (tmp_path / "out" / "checkpoint-4" / WEIGHTS).read_bytes() == result
    kept = {found.name for found in (tmp_path / "out").glob("*checkpoint*")}
    assert kept == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.parametrize("method", ["lora", "mft"])
def test_plain_transformers_loads_a_kept_checkpoint(
    base: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    """And it is that of its step: a training that ends there has the same logits."""
    own = {"method": method, **METHODS[method], "recipe": {"lr_scheduler_type": "constant"}}
    train(base, rows, tmp_path / "long", spec(**own, warmup=0.0), **KEPT)
    train(base, rows, tmp_path / "short", spec(**{**own, "steps": 2, "warmup": 0.0}))
    folders = (tmp_path / "long" / "checkpoint-2", tmp_path / "short")
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    assert type(models[0]) is type(models[1])
    tokens = AutoTokenizer.from_pretrained(folders[0])("1+1=", return_tensors="pt")
    with torch.no_grad():
        logits = [model(input_ids=tokens["input_ids"]).logits for model in models]
    assert torch.equal(*logits)


def test_an_interruption_keeps_no_checkpoint_of_its_own(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "out"
    stopped = train(base, rows, out, spec(steps=6), watch=TrainingWatch(at=interrupt), **KEPT)
    assert (stopped.finished, stopped.steps) == (False, 3)
    assert {found.name for found in out.glob("checkpoint-*")} == {"checkpoint-2"}
    train(base, rows, out, spec(steps=6), resume=True, **KEPT)
    train(base, rows, tmp_path / "straight", spec(steps=6), **KEPT)
    for step in (2, 4, 6):
        kept = [folder / f"checkpoint-{step}" / WEIGHTS for folder in (out, tmp_path / "straight")]
        assert kept[0].read_bytes() == kept[1].read_bytes(), step


@dataclass(frozen=True, kw_only=True)
class Hidden(Method):
    """A package's method whose model has other tensors until it ends."""

    name = "hidden"
    facts = MethodFacts(about="For a test.")

    def prepare(self, model: Any, seed: int, calibration: Any) -> Ready:
        return Ready(model, plain=lambda: model, plain_state=dict)


def test_a_method_that_has_no_ordinary_model_yet_is_refused_before_its_first_step(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    own = training_spec(steps=2).of(Hidden())
    with pytest.raises(DeltaLensError, match=r"'hidden' gives no ordinary model(.|\n)*embed_tok"):
        train(base, rows, tmp_path / "out", own, **KEPT)
    assert not (tmp_path / "out").exists()
