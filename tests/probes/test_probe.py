"""GradientProbe in plain loops: it sees the final gradient, changes nothing, and records it."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import deltalens
from deltalens import DeltaLensError, GradientProbe, load_run
from tests.support.clean_hooks import hook_count
from tests.support.oracles import gradients as oracle
from tests.support.probed_training import STEPS, batches, check, loss_of, net, train

pytestmark = pytest.mark.oracle

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
    "AdamW, foreach": lambda ps: torch.optim.AdamW(ps, lr=1e-2, foreach=True),
    "AdamW, fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "Adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-2),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_final_gradient_is_recorded_and_nothing_changes(
    tmp_path: Path, make: Callable[[Any], torch.optim.Optimizer]
) -> None:
    plain, watched = net(), net()
    train(plain, make(plain.parameters()), steps=20)
    with GradientProbe(watched, tmp_path / "run"):
        seen = train(watched, make(watched.parameters()), steps=20)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    check(tmp_path / "run", seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters(tmp_path: Path, dtype: torch.dtype) -> None:
    model = net(dtype)
    with GradientProbe(model, tmp_path / "run"):
        seen = train(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    check(tmp_path / "run", seen)


def test_accumulated_and_clipped(tmp_path: Path) -> None:
    model = net()
    with GradientProbe(model, tmp_path / "run"):
        seen = train(model, torch.optim.AdamW(model.parameters()), accumulate=3, clip=0.01)
    check(tmp_path / "run", seen)
    norms = load_run(tmp_path / "run").tensors.groupby("step").norm.apply(lambda n: (n**2).sum())
    assert (norms**0.5).tolist() == pytest.approx([0.01] * STEPS, rel=1e-3)


def test_tied_weights_count_once_and_idle_ones_not_at_all(tmp_path: Path) -> None:
    model = net()
    with GradientProbe(model, tmp_path / "run"):
        train(model, torch.optim.AdamW(model.parameters()))
    names = set(load_run(tmp_path / "run").tensors.tensor)
    assert "embed.weight" in names
    assert not any(name.startswith(("head", "idle")) for name in names)


def test_several_groups_and_several_optimizers(tmp_path: Path) -> None:
    model = net()
    groups = [
        {"params": model.layers[0].parameters(), "lr": 1e-2},
        {"params": [model.embed.weight]},
    ]
    one = torch.optim.AdamW(groups, lr=1e-3)
    two = torch.optim.SGD(model.layers[1].parameters(), lr=1e-2)
    data = batches()
    with GradientProbe(model, tmp_path / "all"):
        for _ in range(3):
            loss_of(model, next(data)).backward()
            one.step()
            two.step()
            one.zero_grad()
            two.zero_grad()
    rows = load_run(tmp_path / "all").tensors
    assert rows.groupby("step").size().tolist() == [5, 5, 5]
    with GradientProbe(model, tmp_path / "one", optimizer=two):
        loss_of(model, next(data)).backward()
        one.step()
        two.step()
    assert set(load_run(tmp_path / "one").tensors.tensor) == {"layers.1.weight", "layers.1.bias"}


def test_only_what_is_included_and_only_when_due(tmp_path: Path) -> None:
    model = net()
    with GradientProbe(model, tmp_path / "run", every=3, include=r"layers\.", exclude="bias"):
        train(model, torch.optim.AdamW(model.parameters()), steps=7)
    rows = load_run(tmp_path / "run").tensors
    assert sorted(set(rows.step)) == [0, 3, 6]
    assert set(rows.tensor) == {"layers.0.weight", "layers.1.weight"}
    with GradientProbe(model, tmp_path / "own", every=lambda step: step in (1, 2)):
        train(model, torch.optim.AdamW(model.parameters()), steps=7)
    assert sorted(set(load_run(tmp_path / "own").tensors.step)) == [1, 2]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_units_larger_than_a_tensor(tmp_path: Path, scope: str) -> None:
    model = net()
    with GradientProbe(model, tmp_path / "run", scope=scope, mask_ratios=(0.5,)):
        seen = train(model, torch.optim.AdamW(model.parameters()))
    masks = load_run(tmp_path / "run").masks
    for step, grads in enumerate(seen):
        unit_of = oracle.blocks(list(grads), scope)
        for name in grads:
            unit = {n: g for n, g in grads.items() if unit_of[n] == unit_of[name]}
            row = masks[(masks.step == step) & (masks.tensor == name)].iloc[0]
            assert row.threshold == oracle.threshold(unit, 0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_is_undone_and_skipped_steps_do_not_count(tmp_path: Path, fused: bool) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    seen, data = [], batches()
    with GradientProbe(model, tmp_path / "run", updates=True):
        for number in range(6):
            scaler.scale(loss_of(model, next(data))).backward()
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            if number in (1, 4):
                grads["layers.0.weight"][0, 0] = math.inf
            else:
                scale = scaler.get_scale()
                seen.append({name: grad / scale for name, grad in grads.items()})
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert len(seen) == 4
    check(tmp_path / "run", seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_count_stored_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    model = net(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-3)
    data, wanted = batches(), []
    with GradientProbe(model, tmp_path / "run", updates=True):
        for _ in range(STEPS):
            loss_of(model, next(data)).backward()
            old = {n: p.detach().clone() for n, p in model.named_parameters()}
            grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            optimizer.step()
            new = dict(model.named_parameters())
            wanted.append(
                {
                    name: (
                        float((old[name] != new[name]).float().mean()),
                        float((old[name].bfloat16() != new[name].bfloat16()).float().mean()),
                        float(((old[name] == new[name]) & (grad != 0)).float().mean()),
                    )
                    for name, grad in grads.items()
                }
            )
            optimizer.zero_grad()
    rows = load_run(tmp_path / "run").tensors
    for row in rows.itertuples():
        found = (row.bits_changed, row.bf16_changed, row.stalled)
        assert found == pytest.approx(wanted[row.step][row.tensor])
    assert rows.stalled.max() > 0 or dtype == torch.float32


def test_a_reference_mask_is_compared_with(tmp_path: Path) -> None:
    model = net()
    reference = {"layers.0.weight": torch.rand(8, 8) < 0.3}
    with GradientProbe(model, tmp_path / "run", reference=reference, mask_ratios=(0.5,)):
        seen = train(model, torch.optim.AdamW(model.parameters()))
    masks = load_run(tmp_path / "run").masks
    flat = reference["layers.0.weight"].flatten().nonzero().squeeze(1).tolist()
    given = {("layers.0.weight", place) for place in flat}
    for row in masks[masks.tensor == "layers.0.weight"].itertuples():
        mask = oracle.mask({"layers.0.weight": seen[row.step]["layers.0.weight"]}, 0.5)
        assert row.jaccard_reference == pytest.approx(oracle.jaccard(mask, given))
    assert masks[masks.tensor != "layers.0.weight"].jaccard_reference.isna().all()


# --- what can be wrong ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_hook_stays() -> Iterator[None]:
    before = hook_count()
    yield
    assert hook_count() == before


def test_a_nan_is_a_warning_once(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train_with_nans() -> None:
        for step in range(4):
            loss_of(model, next(batches())).backward()
            if step in (1, 2):
                model.layers[0].bias.grad[3] = math.nan
            optimizer.step()
            optimizer.zero_grad()
            for parameter in model.parameters():
                parameter.data.nan_to_num_()

    message = r"step 1: 1 NaN in the gradient of 'layers\.0\.bias'"
    with GradientProbe(model, tmp_path / "run"), pytest.warns(UserWarning, match=message) as told:
        train_with_nans()
    assert len([w for w in told if "NaN" in str(w.message)]) == 1
    rows = load_run(tmp_path / "run").tensors
    assert rows[rows.tensor == "layers.0.bias"].nans.tolist() == [0, 1, 1, 0]


def test_no_step_seen_is_a_warning(tmp_path: Path) -> None:
    probe, other = GradientProbe(net(), tmp_path / "r").attach(), net()
    train(other, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="no optimizer step"):
        probe.detach()


def test_a_closure_is_told_of(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    probe = GradientProbe(model, tmp_path / "r").attach()
    with pytest.warns(UserWarning, match="closure"):
        optimizer.step(lambda: loss_of(model, next(batches())))
    with pytest.warns(UserWarning, match="no optimizer step"):
        probe.detach()


def test_nothing_included_shows_the_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match=r"matches no parameter(.|\n)*layers\.0\.weight"):
        GradientProbe(net(), tmp_path / "r", include="layer.0.weigth")


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan])
def test_mask_ratios_outside_are_refused(tmp_path: Path, ratio: float) -> None:
    with pytest.raises(DeltaLensError, match=r"mask_ratios: .* not in \[0, 1\)"):
        GradientProbe(net(), tmp_path / "r", mask_ratios=(0.5, ratio))


def test_a_foreign_optimizer_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(DeltaLensError, match="steps no parameter"):
        GradientProbe(net(), tmp_path / "r", optimizer=other).attach()
    assert not (tmp_path / "r").exists()


def test_attached_twice_and_a_folder_in_use(tmp_path: Path) -> None:
    model = net()
    probe = GradientProbe(model, tmp_path / "r").attach()
    try:
        with pytest.raises(DeltaLensError, match="attached already"):
            probe.attach()
        with pytest.raises(DeltaLensError, match="contains another run"):
            GradientProbe(model, tmp_path / "r").attach()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    finally:
        probe.detach()


def test_a_full_disk_ends_the_logging_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalens.errors import RecordError
    from deltalens.io.records import run as runs

    def full(*_: Any) -> None:
        raise RecordError("no space left")

    plain, watched = net(), net()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    monkeypatch.setattr(runs, "PART_SECONDS", 0.0)
    monkeypatch.setattr(runs, "write_parquet", full)
    with GradientProbe(watched, tmp_path / "r"), pytest.warns(UserWarning, match="stops") as told:
        train(watched, torch.optim.SGD(watched.parameters(), lr=0.1))
    assert len([w for w in told if "stops logging" in str(w.message)]) == 1
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name])


def test_a_training_that_raises_takes_its_hooks_along(tmp_path: Path) -> None:
    model = net()

    def fail() -> None:
        with GradientProbe(model, tmp_path / "r"):
            train(model, torch.optim.SGD(model.parameters(), lr=0.1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(set(load_run(tmp_path / "r").tensors.step)) == STEPS


def test_pandas_reads_the_tables_as_they_stand(tmp_path: Path) -> None:
    model = net()
    with GradientProbe(model, tmp_path / "r"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    frame = pd.read_parquet(tmp_path / "r" / "histograms")
    assert list(frame.columns) == ["step", "tensor", "low", "high", "count"]
    assert len(list((tmp_path / "r" / "histograms").glob("*.parquet"))) == 1


def test_copying_a_watched_model_is_fine(tmp_path: Path) -> None:
    model = net()
    with GradientProbe(model, tmp_path / "r"):
        copy.deepcopy(model)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert deltalens.load_run(tmp_path / "r").spec["kind"] == "gradients"
