"""In transformers' and TRL's own trainers: the run is there, and no bit of the model differs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from deltalens import load_run
from deltalens.demo.model import build_tokenizer
from deltalens.demo.recipe import DEFAULT_RECIPE
from deltalens.integrations.transformers import GradientProbeCallback
from tests.support.clean_hooks import hook_count
from tests.support.models import demo_llama as model

STEPS = 20


def settings(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 100,
        "seed": 1,
        **more,
    }


def rows(count: int = 64) -> list[str]:
    return [f"{i}+{i % 7}={i + i % 7}" for i in range(count)]


def plain(out: Path, trained: LlamaForCausalLM, callbacks: list[Any], **more: Any) -> None:
    tokenizer = build_tokenizer(DEFAULT_RECIPE)
    ids = [tokenizer(row)["input_ids"][:6] for row in rows()]
    ids = [row + [tokenizer.pad_token_id] * (6 - len(row)) for row in ids]
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    arguments = TrainingArguments(**settings(out, **more))
    Trainer(trained, arguments, train_dataset=data, callbacks=callbacks).train()


def sft(out: Path, trained: LlamaForCausalLM, callbacks: list[Any], **more: Any) -> None:
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_dict({"prompt": rows(), "completion": [row[::-1] for row in rows()]})
    SFTTrainer(
        trained,
        SFTConfig(**settings(out, **more)),
        train_dataset=data,
        processing_class=build_tokenizer(DEFAULT_RECIPE),
        callbacks=callbacks,
    ).train()


def dpo(out: Path, trained: LlamaForCausalLM, callbacks: list[Any], **more: Any) -> None:
    from trl import DPOConfig, DPOTrainer

    data = Dataset.from_dict(
        {"prompt": rows(), "chosen": [r[::-1] for r in rows()], "rejected": rows()}
    )
    reference = model()
    DPOTrainer(
        trained,
        reference,
        args=DPOConfig(**settings(out, **more)),
        train_dataset=data,
        processing_class=build_tokenizer(DEFAULT_RECIPE),
        callbacks=callbacks,
    ).train()
    for name, value in model().state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name


TRAINERS = {"Trainer": plain, "SFTTrainer": sft, "DPOTrainer": dpo}


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_the_run_is_there_and_no_bit_differs(tmp_path: Path, train: Any) -> None:
    bare, watched = model(), model()
    train(tmp_path / "bare", bare, [])
    probe = GradientProbeCallback(tmp_path / "run", updates=True)
    train(tmp_path / "watched", watched, [probe])
    start = model().state_dict()
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert any(not torch.equal(value, start[name]) for name, value in bare.state_dict().items())
    record = load_run(tmp_path / "run")
    assert sorted(set(record.tensors.step)) == list(range(STEPS))
    names = {name for name, _ in bare.named_parameters()}
    assert set(record.tensors.tensor) == names
    assert probe.attached is not None
    assert probe.attached.steps == STEPS


def test_accumulation_clipping_and_checkpointing_under_the_trainer(tmp_path: Path) -> None:
    more = {
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.05,
        "gradient_checkpointing": True,
        "max_steps": 5,
    }
    bare, watched = model(), model()
    plain(tmp_path / "bare", bare, [], **more)
    plain(tmp_path / "watched", watched, [GradientProbeCallback(tmp_path / "run")], **more)
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    tensors = load_run(tmp_path / "run").tensors
    norms = tensors.groupby("step").norm.apply(lambda norm: float((norm**2).sum() ** 0.5))
    assert norms.tolist() == pytest.approx([0.05] * 5, rel=1e-3)


def test_bf16_weights_under_the_trainer(tmp_path: Path) -> None:
    watched = model(torch.bfloat16)
    plain(tmp_path / "w", watched, [GradientProbeCallback(tmp_path / "run", updates=True)])
    tensors = load_run(tmp_path / "run").tensors
    assert (tensors.bits_changed == tensors.bf16_changed).all()
    assert tensors.bits_changed.between(0, 1).all()


def test_a_training_that_raises_leaves_no_hook_behind(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Failing(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise ZeroDivisionError

    before = hook_count()

    def fail() -> None:
        callbacks = [GradientProbeCallback(tmp_path / "run"), Failing()]
        plain(tmp_path / "w", model(), callbacks)

    with pytest.raises(ZeroDivisionError):
        fail()
    import gc

    gc.collect()
    assert hook_count() == before
    assert sorted(set(load_run(tmp_path / "run").tensors.step)) == [0, 1, 2]
