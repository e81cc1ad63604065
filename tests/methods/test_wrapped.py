"""GradientMask where something comes between a model and its loop: a loss scale, checkpointing, a
compiler, a probe."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from deltalens import GradientMask, GradientProbe, load_run
from tests.support.masked_training import (
    assert_same_bits,
    awkward,
    batches,
    bits_of,
    gradients_of,
    llama,
    loss_of,
    micro_batches,
    seen_by,
    train,
)
from tests.support.oracles import gmt
from tests.support.probed_training import check, net
from tests.support.probed_training import train as train_net

pytestmark = pytest.mark.oracle

SCALE = 2.0**10


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("how", ["fused", "fused, unscaled and clipped before", "not fused"])
def test_a_loss_scale_and_steps_that_it_skips(how: str, apply_to: str) -> None:
    model, data = awkward(), batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=how != "not fused")
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    seen, masks = seen_by(optimizer, model), []
    with GradientMask(model, 0.35, apply_to=apply_to) as mask:
        for number in range(6):
            scaler.scale(loss_of(model, next(data))).backward()
            before, spoiled = bits_of(model), number in (1, 4)
            if spoiled:
                model.layers[0].weight.grad[0, 0] = math.inf if number == 1 else math.nan
            if "clipped" in how:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.01)
            # What the optimizer has still to divide by.
            given, scale = gradients_of(model), 1 if "clipped" in how else scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if spoiled:
                assert_same_bits(bits_of(model), before)
                continue
            unscaled = {name: gradient / scale for name, gradient in given.items()}
            kept = gmt.masks(unscaled, 0.35)
            masks.append(kept)
            assert_same_bits(seen[-1], gmt.masked(unscaled if how == "not fused" else given, kept))
            if apply_to == "update":
                for name, value in bits_of(model).items():
                    stays = ~kept.get(name, torch.zeros_like(value, dtype=torch.bool))
                    assert torch.equal(value[stays], before[name][stays]), name
    assert mask.steps == len(masks) == 4
    assert mask.coverage() == gmt.coverage(masks)


def test_entries_that_tie_once_unscaled_stay() -> None:
    model = nn.Linear(20, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(torch.zeros(()))
    # Divided by the scale, these round to 3, 5 and 9 times the smallest number there is.
    sizes = [3 * 1024 + i for i in range(5)] + [5 * 1024 + i for i in range(-5, 5)]
    sizes += [9 * 1024 + i for i in range(5)]
    given = torch.tensor([sizes], dtype=torch.float64).mul(2.0**-149).float()
    model.weight.grad = given.clone()
    seen = seen_by(optimizer, model)
    with GradientMask(model, 0.5):
        scaler.step(optimizer)
    wanted = gmt.masks({"weight": given / SCALE}, 0.5)
    assert int(wanted["weight"].sum()) == 15
    assert int(gmt.masks({"weight": given}, 0.5)["weight"].sum()) == 10
    assert_same_bits(seen[0], gmt.masked({"weight": given}, wanted))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradient_checkpointing() -> None:
    model, twin, data = llama().train(), llama().train(), micro_batches(3, 2)
    model.gradient_checkpointing_enable()
    with GradientMask(model, 0.5):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    gmt.train(twin, loss_of, data, 0.1, lambda _: 0.5, "tensor")
    assert_same_bits(bits_of(model), bits_of(twin))


@pytest.mark.parametrize("inner", [False, True], ids=["the compiled model", "the model inside"])
def test_a_compiled_model(inner: bool) -> None:
    model, twin, data = awkward(), awkward(), micro_batches(3, 2)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    seen = seen_by(optimizer, model)
    with GradientMask(model if inner else compiled, 0.5, scope="layer") as mask:
        given = train(compiled, optimizer, data)
    prefix = "_orig_mod."
    for found, some in zip(seen, given, strict=True):
        assert all(name.startswith(prefix) for name in some)
        some = {name.removeprefix(prefix): gradient for name, gradient in some.items()}
        assert_same_bits(found, gmt.masked(some, gmt.masks(some, 0.5, "layer")))
    # The compiler's wrapper is no part of the names.
    assert set(mask.thresholds) == {n for n, g in seen[0].items() if g.numel()}
    gmt.train(twin, loss_of, data, 0.1, lambda _: 0.5, "layer")
    for name, value in bits_of(twin).items():
        torch.testing.assert_close(bits_of(model)[name], value, msg=name)


def watched_moves(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """The share of each tensor's entries that a step moved, as the training loop sees it."""
    moves: list[dict[str, float]] = []
    step = optimizer.step

    def watching(*given: object) -> None:
        before = bits_of(model)
        step(*given)
        moves.append({n: float((v != before[n]).float().mean()) for n, v in bits_of(model).items()})

    optimizer.step = watching  # type: ignore[method-assign,assignment]
    return moves


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_a_probe_sees_what_no_mask_has_touched(tmp_path: Path, apply_to: str) -> None:
    trained = []
    for order in ("probe", "mask"):
        model = net()
        probe = GradientProbe(model, tmp_path / order, updates=True)
        mask = GradientMask(model, 0.35, apply_to=apply_to)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        seen, moved = seen_by(optimizer, model), watched_moves(model, optimizer)
        both = [probe, mask] if order == "probe" else [mask, probe]
        for one in both:
            one.attach()
        given = train_net(model, optimizer)
        for one in both:
            one.detach()
        for found, some in zip(seen, given, strict=True):
            assert_same_bits(found, gmt.masked(some, gmt.masks(some, 0.35)))
        check(tmp_path / order, given)
        rows = load_run(tmp_path / order).tensors
        for row in rows.itertuples():
            assert row.bits_changed == pytest.approx(moved[row.step][row.tensor])
            still = given[row.step][row.tensor].ne(0).float().mean() - row.stalled
            assert float(still) <= row.bits_changed + 1e-6
        if apply_to == "update":
            weights = rows[rows.tensor == "layers.0.weight"]
            assert (weights.bits_changed <= 42 / 64).all()
            assert (weights.stalled > 0).any()
        trained.append(bits_of(model))
    assert_same_bits(*trained)
    one, other = (load_run(tmp_path / order) for order in ("probe", "mask"))
    for table in ("tensors", "histograms", "masks"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))
