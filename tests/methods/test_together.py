"""Several masks, trainings one after the other, and optimizers made of others."""

import gc
import math
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from deltalens import (
    DeltaLensError,
    GradientMask,
    GradientProbe,
    HalfFreeze,
    RandomMask,
    load_run,
)
from deltalens.integrations.transformers import GradientMaskCallback
from tests.integrations.test_probe_callback import TRAINERS, model
from tests.support.masked_training import (
    assert_same_bits,
    awkward,
    batches,
    bits_of,
    llama,
    loss_of,
    micro_batches,
    seen_by,
    train,
)
from tests.support.oracles import gmt

pytestmark = pytest.mark.oracle


class Wide(nn.Module):
    """A gradient of 1000 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 100))
        self.weight.grad = torch.randn(10, 100, generator=torch.Generator().manual_seed(0))


def stacked(tmp_path: Path, *masks: Any, probe: bool) -> dict[str, torch.Tensor]:
    """What a step is given behind these masks, attached one after the other."""
    trained = Wide()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    seen = seen_by(optimizer, trained)
    made = [make(trained) for make in masks]
    made += [GradientProbe(trained, tmp_path / "run")] if probe else []
    for one in made:
        one.attach()
    try:
        optimizer.step()
    finally:
        for one in made:
            one.detach()
    return seen[0]


@pytest.mark.parametrize("probe", [False, True], ids=["alone", "beside a probe"])
def test_a_second_mask_ranks_what_the_first_has_left(tmp_path: Path, probe: bool) -> None:
    def first(trained: nn.Module) -> GradientMask:
        return GradientMask(trained, 0.5)

    def second(trained: nn.Module) -> GradientMask:
        return GradientMask(trained, 0.2)

    given = {"weight": Wide().weight.grad}
    half = gmt.masked(given, gmt.masks(given, 0.5))
    wanted = gmt.masked(half, gmt.masks(half, 0.2))
    assert_same_bits(stacked(tmp_path, first, second, probe=probe), wanted)


def test_random_and_gradient_mask_beside_a_probe(tmp_path: Path) -> None:
    def first(trained: nn.Module) -> RandomMask:
        return RandomMask(trained, 0.5)

    def second(trained: nn.Module) -> GradientMask:
        return GradientMask(trained, 0.8)

    half = stacked(tmp_path, first, probe=False)
    wanted = gmt.masked(half, gmt.masks(half, 0.8))
    assert_same_bits(stacked(tmp_path, first, second, probe=True), wanted)


class Counting(torch.optim.SGD):
    """As people write them: a step of its own around its parent's."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_an_optimizer_that_calls_its_parents_step_is_masked_once() -> None:
    trained = Wide()
    torch.optim.SGD(trained.parameters(), lr=0.1)  # torch prepares a class when it is first used
    optimizer = Counting(trained.parameters(), lr=0.1)
    seen = seen_by(optimizer, trained)
    with RandomMask(trained, 0.5) as mask:
        optimizer.step()
    assert mask.steps == 1
    assert int((seen[0]["weight"] != 0).sum()) == 500


@pytest.mark.parametrize("first_step", [0, 5])
def test_a_new_mask_counts_from_its_own_first_step(first_step: int) -> None:
    spec: list[int] = []

    def schedule(step: int) -> float:
        spec.append(step)
        return 0.2

    trained = awkward()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    with GradientMask(trained):
        train(trained, optimizer, micro_batches(3, 1))
    with GradientMask(trained, schedule=schedule, first_step=first_step):
        train(trained, optimizer, micro_batches(2, 1))
    assert spec == [first_step, first_step + 1]


class Failing(TrainerCallback):
    """A training that is interrupted once."""

    def __init__(self) -> None:
        self.times = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and not self.times:
            self.times += 1
            raise KeyboardInterrupt


def test_a_training_that_was_interrupted_begins_anew(tmp_path: Path) -> None:
    spec: list[int] = []

    def schedule(step: int) -> float:
        spec.append(step)
        return 0.35

    trained, callbacks = model(), [GradientMaskCallback(schedule=schedule), Failing()]
    with pytest.raises(KeyboardInterrupt):
        TRAINERS["Trainer"](tmp_path, trained, callbacks, max_steps=4)
    assert spec == [0, 1]
    spec.clear()
    TRAINERS["Trainer"](tmp_path, trained, callbacks, max_steps=4)
    assert spec == [0, 1, 2, 3]


def test_half_freeze_leaves_a_sparse_embedding_alone() -> None:
    trained = llama()
    embed = nn.Embedding(*trained.model.embed_tokens.weight.shape, sparse=True)
    trained.model.embed_tokens = embed
    before = bits_of(trained)
    with HalfFreeze(trained) as freeze:
        loss_of(trained, next(batches())).backward()
        torch.optim.SGD(trained.parameters(), lr=0.1).step()
    still = {name for name, p in trained.named_parameters() if torch.equal(p, before[name])}
    assert still == freeze.frozen


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_a_gradient_of_every_other_entry_of_a_buffer(apply_to: str) -> None:
    trained = nn.Linear(20, 1, bias=False)
    trained.weight = nn.Parameter(torch.ones(20))
    buffer = torch.randn(40, generator=torch.Generator().manual_seed(0))
    trained.weight.grad = buffer[::2]
    given = {"weight": trained.weight.grad.clone()}
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    seen = seen_by(optimizer, trained)
    with GradientMask(trained, 0.5, apply_to=apply_to):
        optimizer.step()
    assert_same_bits(seen[0], gmt.masked(given, gmt.masks(given, 0.5)))


def test_a_nan_in_the_first_step_is_an_error_and_nothing_else() -> None:
    trained = Wide()
    trained.weight.grad[0, 0] = math.nan
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)

    def step() -> None:
        with GradientMask(trained):
            optimizer.step()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(DeltaLensError, match="step 0"):
            step()
    assert not told


def test_a_mask_on_the_model_and_a_probe_on_its_wrapper(tmp_path: Path) -> None:
    """They share one pass: the probe sees what no mask has touched."""
    trained = Wide()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    with (
        GradientMask(trained, 0.9),
        GradientProbe(torch.compile(trained, backend="eager"), tmp_path / "run"),
    ):
        optimizer.step()
    assert load_run(tmp_path / "run").tensors["zeros"].tolist() == [0]


@pytest.mark.parametrize("method", [GradientMask, RandomMask, HalfFreeze])
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_no_gradient_outlives_its_step(method: Any, apply_to: str) -> None:
    """Whoever sets gradients to None has their memory back."""
    trained = llama()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    options = {} if method is HalfFreeze else {"apply_to": apply_to}
    with method(trained, **options):
        trained(input_ids=torch.ones(1, 4, dtype=torch.int64)).logits.sum().backward()
        held = [weakref.ref(p.grad) for p in trained.parameters() if p.grad is not None]
        storages = [
            p.grad.untyped_storage()._weak_ref() for p in trained.parameters() if p.grad is not None
        ]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        assert held
        assert not any(one() is not None for one in held)
        assert all(torch.UntypedStorage._expired(one) for one in storages)
