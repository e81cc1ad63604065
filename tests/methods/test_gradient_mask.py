"""GradientMask in plain loops: what the optimizer is given is Algorithm 1, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltalens import GradientMask
from tests.support.masked_training import (
    MODELS,
    assert_same_bits,
    awkward,
    batches,
    bits_of,
    gradients_of,
    loss_of,
    micro_batches,
    seen_by,
    train,
)
from tests.support.oracles import gmt

pytestmark = pytest.mark.oracle

SCOPES = ("tensor", "layer", "global")
RATIOS = (0.2, 0.35, 0.5, 0, 0.9, "0.995", 0.05)


def ratio_at(step: int) -> float | str:
    return RATIOS[step % len(RATIOS)]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_sgd_is_algorithm_1(
    build: Callable[[torch.dtype], nn.Module], dtype: torch.dtype, scope: str
) -> None:
    model, twin, data = build(dtype), build(dtype), micro_batches(50, 1)
    with GradientMask(model, schedule=ratio_at, scope=scope) as mask:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    masks = gmt.train(twin, loss_of, data, 0.1, ratio_at, scope)
    assert_same_bits(bits_of(model), bits_of(twin))
    assert mask.steps == 50
    assert mask.coverage() == gmt.coverage(masks)
    assert sum(not kept.all() for step in masks for kept in step.values()) > 50


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("ratio", [0.02, 0.35, "0.5", 0.9, 0.999])
def test_the_mask_is_of_the_mean_over_micro_batches(ratio: float | str, scope: str) -> None:
    model, twin, data = awkward(), awkward(), micro_batches(10, 3)
    with GradientMask(model, ratio, scope=scope) as mask:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    masks = gmt.train(twin, loss_of, data, 0.1, lambda _: ratio, scope)
    assert_same_bits(bits_of(model), bits_of(twin))
    assert mask.coverage() == gmt.coverage(masks)


class Large(nn.Module):
    """Enough for several threads, in several pieces, none of them of a round size."""

    def __init__(self) -> None:
        super().__init__()
        for name, entries in (("a", 600_011), ("b", 300_007), ("c", 5)):
            self.register_parameter(name, nn.Parameter(torch.zeros(entries)))


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "with a loss scale"])
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_several_threads_and_pieces_find_the_same(fused: bool, apply_to: str) -> None:
    torch.set_num_threads(2)
    model, scaler = Large(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    # The optimizer may be made later than the mask, as trainers do.
    with GradientMask(model, 0.6, scope="global", apply_to=apply_to) as mask:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        seen = seen_by(optimizer, model)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            # On a grid: ties at the threshold.
            grid = torch.randint(-999, 1000, parameter.shape, generator=generator)
            parameter.grad = grid.to(torch.float32)
        given = gradients_of(model)
        if fused:
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
        else:
            optimizer.step()
    kept = gmt.masks(given, 0.6, "global")
    assert_same_bits(seen[0], gmt.masked(given, kept))
    assert mask.coverage() == gmt.coverage([kept])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter != 0, kept[name]), name


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_ratio_of_zero_is_plain_training(build: Callable[[], nn.Module], apply_to: str) -> None:
    plain, watched, data = build(), build(), micro_batches(50, 2)
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), data, clip=0.5)
    with GradientMask(watched, 0, apply_to=apply_to) as mask:
        train(watched, torch.optim.AdamW(watched.parameters(), lr=1e-2), data, clip=0.5)
    assert_same_bits(bits_of(watched), bits_of(plain))
    assert mask.coverage() == 1


# --- momentum and weight decay --------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, foreach=False),
    "AdamW, foreach": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, foreach=True),
    "AdamW, fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, fused=True),
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_no_masked_weight_moves_and_kept_ones_do(
    make_optimizer: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype
) -> None:
    model, twin, data = awkward(dtype), awkward(dtype), batches()
    optimizer, other = make_optimizer(model.parameters()), make_optimizer(twin.parameters())
    parameters = dict(twin.named_parameters())
    with GradientMask(model, 0.35, apply_to="update"):
        for step in range(20):
            ids = next(data)
            loss_of(model, ids).backward()
            loss_of(twin, ids).backward()
            given, before = gradients_of(model), bits_of(model)
            kept = gmt.masks(given, 0.35)
            optimizer.step()
            gmt.step_of_update(other, parameters, kept)
            after = bits_of(model)
            for name, mask in kept.items():
                assert torch.equal(after[name][~mask], before[name][~mask]), name
                moving = mask & (given[name] != 0)
                moved = (after[name] != before[name])[moving]
                # bf16 rounds small steps away.
                assert moved.all() or step or dtype == torch.bfloat16, name
            assert_same_bits(after, bits_of(twin))
            optimizer.zero_grad()
            other.zero_grad()
    assert not torch.equal(after["embed.weight"], awkward(dtype).embed.weight)


def test_momentum_and_weight_decay_move_masked_weights_of_a_masked_gradient() -> None:
    model, data = awkward(), batches()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    name, moved = "layers.0.weight", []
    with GradientMask(model, 0.35, apply_to="gradient"):
        for _ in range(3):
            loss_of(model, next(data)).backward()
            kept, before = gmt.masks(gradients_of(model), 0.35), bits_of(model)
            optimizer.step()
            moved.append((bits_of(model)[name] != before[name])[~kept[name]])
            optimizer.zero_grad()
    assert all(some.numel() and some.float().mean() > 0.9 for some in moved)


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_accumulated_and_clipped_gradients_under_adamw(apply_to: str) -> None:
    model, data = awkward(), micro_batches(6, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = seen_by(optimizer, model)
    with GradientMask(model, 0.7, scope="global", apply_to=apply_to):
        given = train(model, optimizer, data, clip=0.01)
    norms = [torch.cat([one.flatten() for one in some.values()]).norm().item() for some in given]
    assert norms == pytest.approx([0.01] * 6, rel=1e-3)
    for found, some in zip(seen, given, strict=True):
        assert_same_bits(found, gmt.masked(some, gmt.masks(some, 0.7, "global")))


# --- schedule, coverage, include and exclude ------------------------------------------------------


@pytest.mark.parametrize("first_step", [0, 5])
def test_a_schedule_is_asked_once_per_step(first_step: int) -> None:
    spec: list[int] = []

    def schedule(step: int) -> float:
        spec.append(step)
        return step / 10

    model = awkward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = seen_by(optimizer, model)
    with GradientMask(model, schedule=schedule, first_step=first_step):
        given = train(model, optimizer, micro_batches(5, 2))
    assert spec == [first_step + step for step in range(5)]
    for step, (found, some) in enumerate(zip(seen, given, strict=True)):
        kept = gmt.masks(some, (first_step + step) / 10)
        assert_same_bits(found, gmt.masked(some, kept))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_what_is_left_out_trains_densely(scope: str, apply_to: str) -> None:
    model = awkward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = seen_by(optimizer, model)
    chosen = {"include": r"layers|embed", "exclude": r"bias|1\.weight"}
    with GradientMask(model, 0.6, scope=scope, apply_to=apply_to, **chosen) as mask:
        given = train(model, optimizer, micro_batches(4, 1))
    masks = []
    for found, some in zip(seen, given, strict=True):
        ranked = {name: some[name] for name in ("embed.weight", "layers.0.weight")}
        masks.append(gmt.masks(ranked, 0.6, scope))
        assert_same_bits(found, {**some, **gmt.masked(ranked, masks[-1])})
    assert mask.coverage() == gmt.coverage(masks)
    assert set(mask.thresholds) == {"embed.weight", "layers.0.weight"}
    assert 0 < mask.coverage() < 1


def test_groups_and_several_optimizers() -> None:
    model, data = awkward(), batches()
    layers = [{"params": model.layers[0].parameters()}, {"params": [model.embed.weight]}]
    one = torch.optim.AdamW(layers, lr=1e-3)
    two = torch.optim.SGD(model.layers[1].parameters(), lr=1e-2)
    seen = {optimizer: seen_by(optimizer, model) for optimizer in (one, two)}

    def step() -> dict[str, Tensor]:
        model.zero_grad()
        loss_of(model, next(data)).backward()
        given = gradients_of(model)
        one.step()
        two.step()
        return given

    def check(
        given: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        ratio: float,
        scope: str = "global",
    ) -> None:
        found = seen[optimizer][-1]
        some = {name: given[name] for name in found}
        assert_same_bits(found, gmt.masked(some, gmt.masks(some, ratio, scope)))

    with GradientMask(model, 0.5, scope="layer"):
        given = step()
    check(given, one, 0.5, "layer")
    check(given, two, 0.5, "layer")
    with GradientMask(model, 0.5, scope="global", optimizer=two):
        given = step()
    check(given, one, 0)
    check(given, two, 0.5)
    with GradientMask(model, 0.5, scope="tensor", optimizer=[one, two]) as mask:
        given = step()
    check(given, one, 0.5, "tensor")
    check(given, two, 0.5, "tensor")
    assert mask.steps == 1


def test_the_mask_ends_with_its_context() -> None:
    model = awkward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = seen_by(optimizer, model)
    mask = GradientMask(model, 0.5)
    for attached in (False, True, False, True):
        if attached:
            mask.attach()
        (given,) = train(model, optimizer, micro_batches(1, 1))
        wanted = gmt.masked(given, gmt.masks(given, 0.5)) if attached else given
        assert_same_bits(seen[-1], wanted)
        mask.detach()
    assert mask.steps == 2
    assert mask.seconds > 0
