"""The callbacks in transformers' and TRL's trainers: what their optimizer is given is masked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from deltalens.integrations.transformers import (
    GradientMaskCallback,
    HalfFreezeCallback,
    RandomMaskCallback,
)
from tests.integrations.test_probe_callback import TRAINERS, model, plain
from tests.support.masked_training import (
    Gradients,
    assert_same_bits,
    bits_of,
    gradients_of,
    seen_by,
)
from tests.support.oracles import gmt

pytestmark = pytest.mark.oracle

STEPS = 3


class Witness(TrainerCallback):
    """What the trainer hands over after clipping, and what the optimizer finds inside its step."""

    def __init__(self) -> None:
        self.given: list[Gradients] = []
        self.seen: list[Gradients] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = seen_by(kwargs["optimizer"].optimizer, kwargs["model"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.given.append(gradients_of(kwargs["model"]))


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_the_optimizer_is_given_what_algorithm_1_keeps(
    tmp_path: Path, train: Any, apply_to: str
) -> None:
    trained, witness = model(), Witness()
    mask = GradientMaskCallback(0.35, apply_to=apply_to)
    # DPO's trainer looks itself whether the reference has kept its bits.
    train(tmp_path, trained, [mask, witness], max_steps=STEPS)
    assert mask.attached is not None
    assert mask.attached.steps == len(witness.given) == len(witness.seen) == STEPS
    masks = [gmt.masks(some, 0.35) for some in witness.given]
    for found, some, kept in zip(witness.seen, witness.given, masks, strict=True):
        assert_same_bits(found, gmt.masked(some, kept))
        assert any(not mask.all() for mask in kept.values())
    assert mask.attached.coverage() == gmt.coverage(masks)
    start = model().state_dict()
    for name, value in bits_of(trained).items():
        ever = torch.stack([kept[name] for kept in masks]).any(0)
        assert apply_to == "gradient" or torch.equal(value[~ever], start[name][~ever]), name
        assert not torch.equal(value, start[name]), name


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_accumulation_clipping_and_checkpointing(tmp_path: Path, scope: str) -> None:
    trained, witness = model(), Witness()
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    trained.model.layers[0].mlp.register_forward_pre_hook(count)
    more = {"gradient_accumulation_steps": 3, "max_grad_norm": 0.05, "max_steps": STEPS}
    mask = GradientMaskCallback("0.9", scope=scope)
    plain(tmp_path, trained, [mask, witness], gradient_checkpointing=True, **more)
    assert forwards == 2 * 3 * STEPS
    assert len(witness.seen) == STEPS
    for found, some in zip(witness.seen, witness.given, strict=True):
        norm = torch.cat([one.flatten() for one in some.values()]).norm().item()
        assert norm == pytest.approx(0.05, rel=1e-3)
        assert_same_bits(found, gmt.masked(some, gmt.masks(some, "0.9", scope)))


def test_random_masks_under_the_trainer(tmp_path: Path) -> None:
    witness = Witness()
    plain(tmp_path, model(), [RandomMaskCallback(0.25), witness], max_steps=STEPS)
    for found, some in zip(witness.seen, witness.given, strict=True):
        for name, gradient in some.items():
            kept = found[name] != 0
            assert torch.equal(found[name][kept], gradient[kept]), name
            # Zeros of the gradient cannot be told from masked entries.
            if (gradient != 0).all():
                assert int(kept.sum()) == gmt.stay(gradient.numel(), 0.25), name


def test_half_of_the_layers_frozen_under_the_trainer(tmp_path: Path) -> None:
    trained, freeze = model(), HalfFreezeCallback(seed=3)
    plain(tmp_path, trained, [freeze], max_steps=STEPS, weight_decay=0.1)
    assert freeze.attached is not None
    start = model().state_dict()
    still = {name for name, v in bits_of(trained).items() if torch.equal(v, start[name])}
    assert still == freeze.attached.frozen
    assert still


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientMaskCallback(schedule=lambda step: step / 5, apply_to="update"),
        lambda: RandomMaskCallback(0.5),
    ],
    ids=["gradient", "random"],
)
def test_a_resumed_training_goes_on_with_the_same_masks(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, resumed = model(), model()
    plain(tmp_path / "run", whole, [make()], **saved)
    train = Trainer.train
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    monkeypatch.setattr(
        Trainer, "train", lambda trainer: train(trainer, resume_from_checkpoint=checkpoint)
    )
    callback, witness = make(), Witness()
    plain(tmp_path / "resumed", resumed, [callback, witness], **saved)
    assert len(witness.given) == 2
    assert_same_bits(bits_of(resumed), bits_of(whole))
