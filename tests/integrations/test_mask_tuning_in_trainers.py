"""In transformers' and TRL's trainers, and with what they put between: bf16, resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, Trainer, TrainerCallback

from deltalens import MaskTuning
from tests.integrations.test_probe_callback import model, plain, sft
from tests.support.masked_training import assert_same_bits
from tests.support.mft_models import batches, bits_of, llama, loss_of, named_scores, plain_bits
from tests.support.oracles import mft
from tests.support.oracles.order import count_for

pytestmark = pytest.mark.oracle

STEPS = 4
TRAINERS = {"transformers": plain, "trl": sft}


class AtSave(TrainerCallback):
    """What the model computes when a checkpoint is written."""

    def __init__(self) -> None:
        self.logits: dict[int, torch.Tensor] = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].eval()
        with torch.no_grad():
            self.logits[state.global_step] = kwargs["model"](IDS).logits
        kwargs["model"].train()


IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_trainers_train_scores_and_write_the_masked_model(tmp_path: Path, train: Any) -> None:
    trained, start, at = model(), bits_of(model()), AtSave()
    tuning = MaskTuning(trained, mask_ratio=0.25)
    begun = {name: s.detach().clone() for name, s in named_scores(trained).items()}
    saved = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1}
    train(tmp_path, trained, [at], **saved)
    assert_same_bits(plain_bits(trained), start)
    for name, scores in named_scores(trained).items():
        assert (scores != begun[name]).any(), name
        wanted = mft.mask_of(scores.detach(), name, ratio="0.25")
        assert torch.equal(tuning.masks()[name.removesuffix(".weight")], wanted), name
        assert int((~wanted).sum()) == count_for("0.25", wanted.numel())
    assert sorted(at.logits) == [2, 4]
    for step, logits in at.logits.items():
        loaded = LlamaForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}").eval()
        assert torch.equal(loaded(IDS).logits, logits)
    assert not torch.equal(at.logits[2], at.logits[4])


def test_a_resumed_training_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2}
    whole, resumed = model(), model()
    MaskTuning(whole)
    plain(tmp_path / "run", whole, [], **saved)
    train, checkpoint = Trainer.train, str(tmp_path / "run" / "checkpoint-2")
    monkeypatch.setattr(
        Trainer, "train", lambda trainer: train(trainer, resume_from_checkpoint=checkpoint)
    )
    MaskTuning(resumed)
    plain(tmp_path / "resumed", resumed, [], **saved)
    assert_same_bits(bits_of(resumed), bits_of(whole))
    assert_same_bits(resumed.state_dict(), whole.state_dict())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """The last block alone: the frozen input of its checkpoint needs no gradient."""
    one, other, ids = llama().train(), llama().train(), next(batches())
    for trained in (one, other):
        MaskTuning(trained, blocks="1")
    other.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    other.model.layers[1].mlp.register_forward_pre_hook(count)
    for trained in (one, other):
        loss_of(trained, ids).backward()
    assert calls == 2
    for name, scores in named_scores(other).items():
        wanted = named_scores(one)[name].grad
        assert wanted is not None
        assert torch.equal(scores.grad, wanted), name  # type: ignore[arg-type]
        assert wanted.any(), name


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpointing_and_accumulation_under_the_trainer(tmp_path: Path, reentrant: bool) -> None:
    trained, twin = model(), model()
    for one in (trained, twin):
        MaskTuning(one, blocks="0")
    more = {"gradient_accumulation_steps": 2, "max_steps": STEPS}
    plain(tmp_path / "one", twin, [], **more)
    kwargs = {"use_reentrant": reentrant}
    more |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
    plain(tmp_path / "other", trained, [], **more)
    assert_same_bits(bits_of(trained), bits_of(twin))


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16_under_the_trainer(tmp_path: Path, how: str) -> None:
    dtype = torch.bfloat16 if how == "weights" else torch.float32
    trained = model(dtype)
    tuning = MaskTuning(trained)
    before = tuning.masks()
    plain(tmp_path, trained, [], max_steps=STEPS, bf16=how == "autocast")
    assert all(scores.dtype == torch.float32 for scores in tuning.parameters())
    assert any(not torch.equal(mask, before[name]) for name, mask in tuning.masks().items())
    assert_same_bits(plain_bits(trained), bits_of(model(dtype)))


@pytest.mark.slow
def test_a_compiled_model_trains_the_same() -> None:
    one, other, ids = llama(), llama(), next(batches())
    for trained in (one, other):
        MaskTuning(trained)
    loss_of(one, ids).backward()
    loss_of(torch.compile(other, backend="aot_eager"), ids).backward()  # type: ignore[arg-type]
    for name, scores in named_scores(other).items():
        torch.testing.assert_close(scores.grad, named_scores(one)[name].grad, msg=name)
