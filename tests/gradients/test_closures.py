"""`step(closure)`, as Lightning's automatic optimization calls it for every optimizer: what the
closure computes is masked and logged; where a step computes several gradients, masks refuse."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltalens import DeltaLensError, GradientMask, GradientProbe, HalfFreeze, RandomMask, load_run
from tests.support.masked_training import (
    assert_same_bits,
    batches,
    bits_of,
    llama,
    loss_of,
    micro_batches,
    train,
)
from tests.support.oracles import gmt

pytestmark = pytest.mark.oracle

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1),
    "AdamW, fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
}
MASKS: dict[str, Callable[[nn.Module], Any]] = {
    "gradient": lambda m: GradientMask(m, 0.5, scope="layer"),
    "update": lambda m: GradientMask(m, 0.5, apply_to="update"),
    "random": lambda m: RandomMask(m, 0.5, apply_to="update"),
    "half": HalfFreeze,
}


def closure_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, seen: list[Any] | None = None
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        if seen is not None:
            seen.append({n: p.grad.clone() for n, p in model.named_parameters()})
        return loss

    return closure


def train_with_closures(model: nn.Module, optimizer: Any, data: Any, how: str) -> list[Any]:
    seen: list[Any] = []
    for (ids,) in data:
        closure = closure_of(model, optimizer, ids, seen)
        loss = optimizer.step(closure) if how == "first" else optimizer.step(closure=closure)
        assert loss.item() > 0
    return seen


@pytest.mark.parametrize("how", ["first", "by name"])
@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_is_the_training_of_backward_and_step(make_optimizer: Any, make: Any, how: str) -> None:
    model, twin, data = llama(), llama(), micro_batches(4, 1)
    with make(model) as mask:
        train_with_closures(model, make_optimizer(model.parameters()), data, how)
    with make(twin):
        train(twin, make_optimizer(twin.parameters()), data)
    assert_same_bits(bits_of(model), bits_of(twin))
    assert mask.steps == 4


def test_it_is_algorithm_1() -> None:
    model, twin, data = llama(), llama(), micro_batches(4, 1)
    with GradientMask(model, 0.5):
        train_with_closures(model, torch.optim.SGD(model.parameters(), lr=0.1), data, "first")
    gmt.train(twin, loss_of, data, 0.1, lambda _: 0.5, "tensor")
    assert_same_bits(bits_of(model), bits_of(twin))


def test_a_probe_logs_its_gradients_and_changes_nothing(tmp_path: Path) -> None:
    model, twin, data = llama(), llama(), micro_batches(4, 1)
    train_with_closures(twin, OPTIMIZERS["AdamW"](twin.parameters()), data, "by name")
    with GradientProbe(model, tmp_path / "run", updates=True) as probe:
        seen = train_with_closures(model, OPTIMIZERS["AdamW"](model.parameters()), data, "by name")
    assert_same_bits(bits_of(model), bits_of(twin))
    assert probe.steps == 4
    rows = load_run(tmp_path / "run").tensors
    for row in rows.itertuples():
        assert row.norm == pytest.approx(float(seen[row.step][row.tensor].norm()), rel=1e-5)
    assert (rows.bits_changed > 0.5).all()


class Sharpness(torch.optim.SGD):
    """SAM's step: climb, compute the gradient there, go back and step."""

    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p in parameters:
                p.data.add_(torch.sign(p), alpha=0.05)
        with torch.enable_grad():
            loss = closure()
        for p, old in zip(parameters, before, strict=True):
            p.data.copy_(old)
        super().step()
        return loss


def test_weights_are_put_back_to_where_the_step_began(tmp_path: Path) -> None:
    model, ids = llama(), next(batches())
    torch.optim.SGD(model.parameters(), lr=0.1)  # torch prepares a class when it is first used
    optimizer, seen = Sharpness(model.parameters(), lr=0.1), []
    before = bits_of(model)
    with (
        GradientMask(model, 0.5, apply_to="update") as mask,
        GradientProbe(model, tmp_path / "run", updates=True),
    ):
        optimizer.step(closure_of(model, optimizer, ids, seen))
    assert mask.steps == 1
    kept = gmt.masks(seen[0], 0.5)
    changed = load_run(tmp_path / "run").tensors.set_index("tensor").bits_changed
    for name, value in bits_of(model).items():
        assert torch.equal(value[~kept[name]], before[name][~kept[name]]), name
        assert changed[name] == pytest.approx(float((value != before[name]).float().mean()))
    assert not torch.equal(model.lm_head.weight, before["model.embed_tokens.weight"])


# --- where it cannot be right ---------------------------------------------------------------------


class Twice(torch.optim.SGD):
    """A line search of sorts."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss


class Never(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step()


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_lbfgs_is_refused_before_anything_moves(make: Any) -> None:
    model, ids = llama(), next(batches())
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    before = bits_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with (
            make(model),
            pytest.raises(DeltaLensError, match="LBFGS evaluates its closure several times"),
        ):
            optimizer.step(closure_of(model, optimizer, ids))
    assert_same_bits(bits_of(model), before)


def test_a_second_evaluation_is_refused() -> None:
    model, ids = llama(), next(batches())
    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Twice(model.parameters(), lr=0.1)
    before = bits_of(model)
    with GradientMask(model, 0.5), pytest.raises(DeltaLensError, match="Twice evaluates"):
        optimizer.step(closure_of(model, optimizer, ids))
    assert_same_bits(bits_of(model), before)


def test_a_closure_that_is_not_evaluated_is_told_of() -> None:
    model, ids = llama(), next(batches())
    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Never(model.parameters(), lr=0.1)
    loss_of(model, ids).backward()
    with GradientMask(model, 0.5), pytest.raises(DeltaLensError, match="without evaluating"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Twice])
def test_a_probe_never_ends_such_a_training(tmp_path: Path, kind: Any) -> None:
    model, twin, ids = llama(), llama(), next(batches())
    torch.optim.SGD(model.parameters(), lr=0.1)
    plain, optimizer, seen = kind(twin.parameters(), lr=0.1), kind(model.parameters(), lr=0.1), []

    def two_steps() -> None:
        for _ in range(2):
            optimizer.step(closure_of(model, optimizer, ids, seen))

    with (
        GradientProbe(model, tmp_path / "run") as probe,
        pytest.warns(
            UserWarning, match="only the gradient of the first evaluation is logged"
        ) as told,
    ):
        two_steps()
    assert len([one for one in told if "evaluates its closure" in str(one.message)]) == 1
    firsts = [seen[0], seen[len(seen) // 2]]
    for _ in range(2):
        plain.step(closure_of(twin, plain, ids))
    assert_same_bits(bits_of(model), bits_of(twin))
    assert probe.steps == 2
    for row in load_run(tmp_path / "run").tensors.itertuples():
        if row.step == 0:
            assert row.norm == pytest.approx(float(firsts[0][row.tensor].norm()), rel=1e-5)


def test_another_optimizers_step_inside_a_closure_is_a_step_of_its_own() -> None:
    """As in meta-learning: the closure trains the same weights before it computes its gradient."""
    model, ids = llama(), next(batches())
    outer = torch.optim.SGD(model.parameters(), lr=0.1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    before = bits_of(model)

    def closure() -> Tensor:
        loss_of(model, ids).backward()
        inner.step()
        for name, value in bits_of(model).items():
            assert (value == before[name]).float().mean() >= 0.5, name
        return closure_of(model, outer, ids)()

    with GradientMask(model, 0.5, apply_to="gradient") as mask:
        outer.step(closure)
    assert mask.steps == 2
