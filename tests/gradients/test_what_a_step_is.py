"""What counts as one step where several optimizers step a model, in turn or inside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltalens import DeltaLensError, GradientMask, GradientProbe, RandomMask, load_run
from tests.support.masked_training import (
    assert_same_bits,
    batches,
    bits_of,
    gradients_of,
    llama,
    loss_of,
    seen_by,
)
from tests.support.oracles import gmt

pytestmark = pytest.mark.oracle


def matrices_and_rest(model: nn.Module) -> list[torch.optim.Optimizer]:
    """As people use Muon."""
    parameters = list(model.parameters())
    return [
        torch.optim.Muon([p for p in parameters if p.dim() == 2], lr=1e-2),
        torch.optim.AdamW([p for p in parameters if p.dim() != 2], lr=1e-2),
    ]


def in_turn(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    data = batches()
    for _ in range(steps):
        loss_of(model, next(data)).backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()


def test_muon_and_adamw_take_one_step_together(tmp_path: Path) -> None:
    model, spec = llama(), []

    def schedule(step: int) -> float:
        spec.append(step)
        return 0.5

    with (
        GradientMask(model, schedule=schedule) as mask,
        GradientProbe(model, tmp_path / "run", every=2) as probe,
    ):
        in_turn(model, matrices_and_rest(model), steps=4)
    assert (mask.steps, probe.steps, spec) == (4, 2, [0, 1, 2, 3])
    record = load_run(tmp_path / "run")
    names = {name for name, _ in model.named_parameters()}
    for step in (0, 2):
        assert set(record.tensors[record.tensors.step == step].tensor) == names
    assert sorted(set(record.tensors.step)) == [0, 2]
    assert set(record.facts["tensors"]) == names
    assert set(mask.thresholds) == names


def stepped_in_backward(
    model: nn.Module, watch: Callable[[nn.Parameter], None] = lambda _: None
) -> None:
    """One optimizer for each parameter, which steps as soon as its gradient is there."""
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def step(ready: nn.Parameter, optimizer: torch.optim.Optimizer = optimizer) -> None:
            watch(ready)
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_all_optimizers_inside_a_backward_pass_take_one_step(
    tmp_path: Path, checkpointed: bool
) -> None:
    model, data = llama().train(), batches()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
    stepped_in_backward(model)
    with (
        GradientMask(model, 0.5, apply_to="update") as mask,
        GradientProbe(model, tmp_path / "run") as probe,
    ):
        for _ in range(3):
            before = bits_of(model)
            loss_of(model, next(data)).backward()
            for name, value in bits_of(model).items():
                assert (value == before[name]).float().mean() >= 0.5, name
    assert mask.steps == probe.steps == 3
    rows = load_run(tmp_path / "run").tensors
    assert rows.groupby("step").size().tolist() == [len(bits_of(model))] * 3


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_in_the_backward_pass_a_wider_scope_is_refused_before_anything_moves(
    tmp_path: Path, scope: str
) -> None:
    model = llama()
    stepped_in_backward(model)
    before, ids = bits_of(model), next(batches())
    message = f"scope='{scope}' ranks (.*) together, but several optimizers take this step"
    with GradientMask(model, 0.5, scope=scope), pytest.raises(DeltaLensError, match=message):
        loss_of(model, ids).backward()
    moved = [name for name, value in bits_of(model).items() if not torch.equal(value, before[name])]
    # Of what is in no block a scope of blocks ranks each alone.
    assert not moved if scope == "global" else all("layers" not in name for name in moved)
    with (
        pytest.warns(UserWarning, match="stops logging"),
        GradientProbe(model, tmp_path / "run", scope=scope),
    ):
        loss_of(model, ids).backward()


def test_a_wider_scope_over_optimizers_in_turn_is_refused() -> None:
    model = llama()
    with (
        GradientMask(model, 0.5, scope="global"),
        pytest.raises(DeltaLensError, match="take this step"),
    ):
        in_turn(model, matrices_and_rest(model), steps=1)


def test_one_optimizer_for_each_block_ranks_blocks() -> None:
    model = llama()
    blocks = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model.model.layers]
    seen = [seen_by(optimizer, model) for optimizer in blocks]
    loss_of(model, next(batches())).backward()
    given = gradients_of(model)
    with GradientMask(model, 0.5, scope="layer") as mask:
        for optimizer in blocks:
            optimizer.step()
    found = {name: gradient for one in seen for name, gradient in one[0].items()}
    given = {name: gradient for name, gradient in given.items() if name in found}
    assert_same_bits(found, gmt.masked(given, gmt.masks(given, 0.5, "layer")))
    assert mask.steps == 1


class Pair(nn.Module):
    """A generator and its discriminator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, self.judge = nn.Linear(4, 20, bias=False), nn.Linear(20, 10, bias=False)

    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.judge(self.make(given)).square().mean()
        return found


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_optimizers_with_a_backward_pass_each_take_steps_of_their_own(scope: str) -> None:
    model = Pair()
    judge = torch.optim.SGD(model.judge.parameters(), lr=0.1)
    make = torch.optim.SGD(model.make.parameters(), lr=0.1)
    seen = {optimizer: seen_by(optimizer, model) for optimizer in (judge, make)}
    spec: list[int] = []

    def schedule(step: int) -> float:
        spec.append(step)
        return 0.5

    def step(optimizer: torch.optim.Optimizer, sign: int) -> None:
        optimizer.zero_grad()
        (sign * model(torch.randn(3, 4))).backward()
        given = gradients_of(model)
        optimizer.step()
        found = seen[optimizer][-1]
        given = {name: given[name] for name in found}
        assert_same_bits(found, gmt.masked(given, gmt.masks(given, 0.5, scope)))

    with GradientMask(model, schedule=schedule, scope=scope) as mask:
        for _ in range(2):
            step(judge, 1)
            step(judge, 1)
            step(make, -1)
    assert mask.steps == 6
    assert spec == list(range(6))


def test_what_is_unscaled_or_clipped_between_two_optimizers_is_one_step() -> None:
    model, data = llama(), batches()
    optimizers = matrices_and_rest(model)
    with GradientMask(model, 0.5) as mask:
        for _ in range(3):
            loss_of(model, next(data)).backward()
            for optimizer in optimizers:
                held = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(held, 0.1)
                optimizer.step()
            model.zero_grad()
    assert mask.steps == 3


def test_an_optimizer_that_steps_now_and_then_takes_part_when_it_does() -> None:
    model, data = llama(), batches()
    often, rarely = matrices_and_rest(model)
    with GradientMask(model, 0.5) as mask:
        for number in range(6):
            loss_of(model, next(data)).backward()
            often.step()
            often.zero_grad()
            if number % 3 == 2:
                rarely.step()
                rarely.zero_grad()
    assert mask.steps == 6


# --- a step inside a step -------------------------------------------------------------------------


class Around(torch.optim.SGD):
    """Does something inside its step."""

    inside: Callable[[], Any] = staticmethod(lambda: None)  # type: ignore[assignment]

    def step(self, closure: Any = None) -> Any:
        type(self).inside()
        return super().step(closure)


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(64, 64, bias=False)
    model.weight.grad = torch.randn(64, 64)
    return model


def moved(model: nn.Module, before: dict[str, Tensor]) -> int:
    return sum(int((value != before[name]).sum()) for name, value in bits_of(model).items())


def test_another_models_step_inside_a_step_switches_nothing_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, other = linear(), linear(1)
    torch.optim.SGD(model.parameters(), lr=0.1)  # torch prepares a class when it is first used
    optimizer = Around(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    inner = torch.optim.AdamW(other.parameters(), lr=0.1)
    monkeypatch.setattr(Around, "inside", staticmethod(inner.step))
    with (
        GradientMask(model, 0.9, apply_to="update") as mask,
        GradientMask(other, 0.5, apply_to="update") as others,
        GradientProbe(model, tmp_path / "run", updates=True),
    ):
        for _ in range(3):
            before, far = bits_of(model), bits_of(other)
            optimizer.step()
            assert (moved(model, before), moved(other, far)) == (410, 2048)
    assert mask.steps == others.steps == 3
    logged = load_run(tmp_path / "run").tensors
    assert logged.bits_changed.tolist() == [410 / 4096] * 3


def test_parameters_that_only_the_inner_optimizer_holds_are_masked_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.ModuleList([linear(), linear(1), linear(2)])
    torch.optim.SGD(model.parameters(), lr=0.1)
    outer = Around([*model[0].parameters(), *model[1].parameters()], lr=0.1)
    inner = torch.optim.SGD([*model[1].parameters(), *model[2].parameters()], lr=0.1)
    monkeypatch.setattr(Around, "inside", staticmethod(inner.step))
    before = bits_of(model)
    with GradientMask(model, 0.9, apply_to="update"):
        outer.step()
    for place in range(3):
        assert moved(model[place], {"weight": before[f"{place}.weight"]}) == 410


def test_a_mask_of_the_inner_optimizer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    torch.optim.SGD(model.parameters(), lr=0.1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    class Wrapping(torch.optim.Optimizer):
        def __init__(self) -> None:
            super().__init__(inner.param_groups, {})

        def step(self, closure: Any = None) -> Any:
            return inner.step(closure)

    before = bits_of(model)
    with GradientMask(model, 0.9, optimizer=inner) as mask:
        Wrapping().step()
    assert mask.steps == 1
    assert moved(model, before) == 410


def test_a_step_that_raises_leaves_nothing_behind() -> None:
    model, other = linear(), linear(1)
    torch.optim.SGD(model.parameters(), lr=0.1)

    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise ZeroDivisionError

    broken, whole = Failing(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.1)
    far = torch.optim.SGD(other.parameters(), lr=0.1)
    with GradientMask(model, 0.9, apply_to="update"), GradientMask(other, 0.9) as others:
        with pytest.raises(ZeroDivisionError):
            broken.step()
        before = bits_of(model)
        model.weight.grad = torch.randn(64, 64)
        far.step()
        whole.step()
        assert moved(model, before) == 410
    assert others.steps == 1


def test_restored_scores_are_what_a_learned_mask_is_selected_from() -> None:
    from deltalens import MaskTuning
    from tests.support.mft_models import llama as finished

    model = finished()
    tuning = MaskTuning(model, mask_ratio=0.9)
    scores = tuning.parameters()
    optimizer = torch.optim.AdamW(scores, lr=0.5)
    with RandomMask(model, 0.9, apply_to="update", seed=3):
        for _ in range(3):  # momentum moves what the masks before have let move
            for one in scores:
                one.grad = torch.randn_like(one)
            optimizer.step()
    found = tuning.masks()
    state = {name: scores[place].detach() for place, name in enumerate(tuning.layers)}
    for name, mask in found.items():
        order = state[name].abs().flatten().argsort()
        gone = order[: round(0.9 * order.numel())]
        assert not mask.flatten()[gone].any(), name
