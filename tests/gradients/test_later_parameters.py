"""Parameters that are unfrozen, added or replaced after a mask or a probe was made belong to it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import DeltaLensError, GradientMask, GradientProbe, HalfFreeze, RandomMask, load_run
from tests.support.masked_training import bits_of, llama, loss_of, micro_batches

MASKS: dict[str, Callable[..., Any]] = {
    "gradient": lambda m, **more: GradientMask(m, 0.9, apply_to="update", **more),
    "random": lambda m, **more: RandomMask(m, 0.9, apply_to="update", **more),
}
each_mask = pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)


def stack(layers: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(40, 40, bias=False) for _ in range(layers)))


def moved_share(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The shares of entries whose bits a step moves, of the tensors that move at all."""
    before = bits_of(model)
    optimizer.zero_grad()
    model(torch.randn(64, 40)).square().mean().backward()
    optimizer.step()
    shares = {
        name: float((value != before[name]).float().mean())
        for name, value in bits_of(model).items()
        if name in before and value.shape == before[name].shape
    }
    return {name: share for name, share in shares.items() if share}


def only(model: nn.Sequential, *layers: int) -> None:
    model.requires_grad_(False)
    for layer in layers:
        model[layer].requires_grad_(True)


@each_mask
def test_one_layer_unfrozen_after_the_other(make: Any, tmp_path: Path) -> None:
    """LISA, ULMFiT."""
    model = stack()
    only(model, 3)
    with make(model) as mask, GradientProbe(model, tmp_path / "run") as probe:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for layer in (3, 0, 1, 2):
            only(model, layer)
            shares = moved_share(model, optimizer)
            assert shares == {f"{layer}.weight": pytest.approx(0.1)}
    assert mask.steps == probe.steps == 4
    record = load_run(tmp_path / "run")
    assert record.tensors.tensor.tolist() == ["3.weight", "0.weight", "1.weight", "2.weight"]
    assert record.facts["tensors"] == {f"{layer}.weight": 1600 for layer in range(4)}


@each_mask
def test_a_layer_added_with_a_group_of_its_own(make: Any) -> None:
    model = stack(2)
    with make(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        moved_share(model, optimizer)
        model.append(nn.Linear(40, 40, bias=False))
        optimizer.add_param_group({"params": model[2].parameters()})
        shares = moved_share(model, optimizer)
    assert shares == {f"{layer}.weight": pytest.approx(0.1) for layer in range(3)}


@each_mask
@pytest.mark.parametrize("size", [40, 24], ids=["same size", "another size"])
def test_a_layer_replaced(make: Any, size: int, tmp_path: Path) -> None:
    model = stack(2)
    with (
        make(model) as mask,
        GradientProbe(model, tmp_path / "run", updates=True) as probe,
    ):
        moved_share(model, torch.optim.AdamW(model.parameters(), 1e-2))
        model[1] = nn.Linear(40, size, bias=False, dtype=torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            shares = moved_share(model, optimizer)
            assert shares == {f"{layer}.weight": pytest.approx(0.1) for layer in range(2)}
    assert 0.1 <= mask.coverage() <= 0.3
    assert probe.steps == 3
    rows = load_run(tmp_path / "run").tensors
    assert rows[rows.tensor == "1.weight"].entries.tolist() == [1600, 40 * size, 40 * size]
    masks = load_run(tmp_path / "run").masks
    new = masks[(masks.tensor == "1.weight") & (masks.step == 1)]
    if size != 40:  # It has no past of its own to be compared with.
        assert new.jaccard_previous.isna().all()
        assert (new.coverage == new.kept / new.entries).all()


@each_mask
def test_a_model_cast_in_the_middle(make: Any, tmp_path: Path) -> None:
    model = stack(2)
    with make(model), GradientProbe(model, tmp_path / "run", updates=True) as probe:
        moved_share(model, torch.optim.AdamW(model.parameters(), 1e-2))
        model.to(torch.float64)
        before = bits_of(model)
        model(torch.randn(64, 40).double()).square().mean().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    for name, value in bits_of(model).items():
        assert (value != before[name]).float().mean() == pytest.approx(0.1)
    assert probe.steps == 2
    rows = load_run(tmp_path / "run").tensors
    assert rows[rows.step == 1].bits_changed.tolist() == [0.1, 0.1]


@each_mask
def test_patterns_hold_for_names_that_come_later(make: Any) -> None:
    model = stack(3)
    only(model, 0)
    with make(model, exclude="1"):
        only(model, 0, 1, 2)
        shares = moved_share(model, torch.optim.AdamW(model.parameters(), 1e-2))
    assert shares == {
        "0.weight": pytest.approx(0.1),
        "1.weight": pytest.approx(1.0, abs=0.01),
        "2.weight": pytest.approx(0.1),
    }


@each_mask
def test_what_is_frozen_when_the_mask_is_made_is_said(make: Any) -> None:
    model = stack(3)
    only(model, 0)
    with pytest.warns(UserWarning, match=r"all selected parameters are frozen(.|\n)*2\.weight"):
        mask = make(model, include="2")
    with mask:
        only(model, 2)
        shares = moved_share(model, torch.optim.AdamW(model.parameters(), 1e-2))
    assert shares == {"2.weight": pytest.approx(0.1)}


@each_mask
def test_a_gradient_of_what_was_frozen_just_before_the_step(make: Any) -> None:
    """Optimizers step whatever has a gradient."""
    model = stack(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = bits_of(model)
    with make(model):
        model(torch.randn(64, 40)).square().mean().backward()
        model.requires_grad_(False)
        optimizer.step()
    assert float((model[0].weight != before["0.weight"]).float().mean()) == pytest.approx(0.1)


def test_half_of_what_is_unfrozen_later_is_frozen() -> None:
    model, data = llama(layers=4), micro_batches(2, 1)
    model.model.layers[2:].requires_grad_(False)
    whole, at_first = HalfFreeze(llama(layers=4)), HalfFreeze(model)
    assert {n for n in at_first.frozen if n.startswith(("model.layers.2", "model.layers.3"))}
    assert len(at_first.frozen) == len(whole.frozen)
    with at_first:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for (ids,) in data:
            before = bits_of(model)
            optimizer.zero_grad()
            loss_of(model, ids).backward()
            optimizer.step()
            still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
            trained = {name for name, p in model.named_parameters() if p.requires_grad}
            assert still & trained == at_first.frozen & trained
            model.requires_grad_(True)


def test_half_freeze_refuses_a_layer_it_has_not_drawn() -> None:
    model = stack(2)
    with HalfFreeze(model):
        model.append(nn.Linear(40, 40, bias=False))
        before = bits_of(model)
        with pytest.raises(DeltaLensError, match=r"added after HalfFreeze drew(.|\n)*2\.weight"):
            moved_share(model, torch.optim.AdamW(model.parameters(), 1e-2))
    for name, value in bits_of(model).items():
        assert torch.equal(value, before[name])


def test_nothing_is_said_where_nothing_changes() -> None:
    model = stack(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with GradientMask(model, 0.5), RandomMask(model, 0.5), HalfFreeze(model):
            moved_share(model, torch.optim.AdamW(model.parameters(), 1e-2))
