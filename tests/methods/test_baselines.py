"""RandomMask draws what it says, for whom it says; HalfFreeze freezes half of every kind."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from deltalens import HalfFreeze, RandomMask
from tests.support.masked_training import (
    assert_same_bits,
    awkward,
    bits_of,
    llama,
    micro_batches,
    seen_by,
    train,
)
from tests.support.models import tiny
from tests.support.oracles import gmt

pytestmark = pytest.mark.oracle

SIZES = {"small": 3, "one": 1, "odd": 101, "wide": 2048}
Drawn = list[dict[str, Tensor]]


class Bare(nn.Module):
    """Parameters, and a gradient without zeros."""

    def __init__(self, names: Iterable[str] = SIZES) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(SIZES[name])))


def drawn_on(model: nn.Module, steps: int, ratio: float | str, **spec: Any) -> Drawn:
    """The masks of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = seen_by(optimizer, model)
    with RandomMask(model, ratio, **spec) as mask:
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, -2.0)
            optimizer.step()
    for some in seen:
        assert all(((one == -2) | (one == 0)).all() for one in some.values())
    assert mask.steps == steps
    return [{name: one == -2 for name, one in some.items()} for some in seen]


def drawn(steps: int, ratio: float | str, names: Iterable[str] = SIZES, **spec: Any) -> Drawn:
    return drawn_on(Bare(names), steps, ratio, **spec)


def same(one: Drawn, other: Drawn) -> bool:
    return all(
        torch.equal(first[name], second[name])
        for first, second in zip(one, other, strict=True)
        for name in second
    )


@pytest.mark.parametrize("ratio", [0, 0.2, "0.35", 0.5, 0.999])
def test_counts_are_exact_and_every_step_draws_anew(ratio: float | str) -> None:
    masks = drawn(6, ratio)
    for mask in masks:
        for name, size in SIZES.items():
            assert int(mask[name].sum()) == size - round(Fraction(str(ratio)) * size), name
    if ratio in (0.2, "0.35", 0.5):
        assert all(not same([a], [b]) for a in masks for b in masks if a is not b)


def test_two_steps_have_in_common_what_chance_gives() -> None:
    masks, size = drawn(8, 0.5), SIZES["wide"]
    for first, second in itertools.pairwise(masks):
        both = int((first["wide"] & second["wide"]).sum())
        # Hypergeometric: n/2 of n, n/2 drawn.
        assert abs(both - size / 4) < 5 * math.sqrt(size / 16)


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_every_entry_is_kept_as_often_as_any(draw: str) -> None:
    steps, keep = 400, 0.7
    times = torch.stack([mask["odd"] for mask in drawn(steps, 0.3, ["odd"], draw=draw)]).sum(0)
    assert (times - keep * steps).abs().max() < 5 * math.sqrt(steps * keep * (1 - keep))


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_seed_step_and_name_decide_and_nothing_else(draw: str) -> None:
    masks = drawn(6, 0.4, draw=draw, seed=1)
    assert same(masks, drawn(6, 0.4, draw=draw, seed=1))
    # Gone on from step 4; other tensors left out, or in another order.
    assert same(masks[4:], drawn(2, 0.4, draw=draw, seed=1, first_step=4))
    assert same(masks, drawn(6, 0.4, ["wide", "odd"], draw=draw, seed=1))
    other = drawn(6, 0.4, draw=draw, seed=2)
    assert not any(torch.equal(a["wide"], b["wide"]) for a, b in zip(masks, other, strict=True))


def test_tensors_of_a_size_differ() -> None:
    model = nn.ModuleList(nn.Linear(40, 5, bias=False) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = seen_by(optimizer, model)
    with RandomMask(model, 0.5):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert not torch.equal(seen[0]["0.weight"], seen[0]["1.weight"])


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_drawn_once(draw: str) -> None:
    masks = drawn(4, 0.4, resample="once", draw=draw)
    assert all(same([mask], masks[:1]) for mask in masks)
    assert same(masks[:2], drawn(2, 0.4, resample="once", draw=draw, first_step=9))


@pytest.mark.parametrize("ratio", [0.1, 0.5, "0.93"])
def test_bernoulli_keeps_about_its_share(ratio: float | str) -> None:
    masks, keep, size = drawn(5, ratio, draw="bernoulli"), 1 - float(ratio), SIZES["wide"]
    counts = [int(mask["wide"].sum()) for mask in masks]
    assert all(abs(n - keep * size) < 5 * math.sqrt(size * keep * (1 - keep)) for n in counts)
    assert len(set(counts)) > 1


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_what_is_drawn_trains_and_the_rest_does_not(apply_to: str) -> None:
    spec: dict[str, Any] = {"exclude": "bias", "resample": "once", "seed": 5}
    (kept,) = drawn_on(awkward(), 1, 0.5, **spec)
    assert all(kept[name].all() for name in kept if "bias" in name)
    model, before = awkward(), bits_of(awkward())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    seen = seen_by(optimizer, model)
    with RandomMask(model, 0.5, apply_to=apply_to, **spec) as mask:
        given = train(model, optimizer, micro_batches(5, 2))
    for found, some in zip(seen, given, strict=True):
        assert_same_bits(found, gmt.masked(some, kept))
    after = bits_of(model)
    for name in given[0]:
        still = after[name] == before[name]
        if apply_to == "update":
            assert still[~kept[name]].all(), name
        reached = torch.stack([some[name] != 0 for some in given]).any(0)
        assert not still[kept[name] & reached].any(), name
    ranked = {name: kept[name] for name in given[0] if "bias" not in name}
    assert mask.coverage() == gmt.coverage([ranked])


def test_coverage_is_what_any_step_has_drawn() -> None:
    model = Bare()
    masks = drawn_on(model, 3, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with RandomMask(model, 0.8) as mask:
        for _ in range(3):
            optimizer.step()
    assert mask.coverage() == gmt.coverage(masks)


# --- half of the layers ---------------------------------------------------------------------------


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return tiny("gpt2", vocab_size=23, n_positions=16, n_layer=4)  # type: ignore[no-any-return]


KINDS = {
    "attention": r"self_attn\.[qkvo]_proj|attn\.c_(attn|proj)",
    "mlp": r"mlp\.(gate|up|down)_proj|mlp\.c_(fc|proj)",
    "norm": r"(input|post_attention)_layernorm|ln_[12]",
}


def counts(names: Iterable[str]) -> dict[str, Counter[str]]:
    """Block -> how many layers of each kind."""
    layers = {name.rpartition(".")[0] for name in names}
    found: dict[str, Counter[str]] = {}
    for layer in layers:
        match = re.fullmatch(r"(.*\.\d+)\.(.*)", layer)
        assert match, layer
        kind = next(kind for kind, form in KINDS.items() if re.fullmatch(form, match[2]))
        found.setdefault(match[1], Counter())[kind] += 1
    return found


@pytest.mark.parametrize("layers", [1, 2, 4, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_half_of_every_kind_in_every_block_of_a_llama(layers: int, seed: int) -> None:
    found = counts(HalfFreeze(llama(layers=layers), seed=seed).frozen)
    assert set(found) == {f"model.layers.{place}" for place in range(layers)}
    assert all(one["attention"] == 2 and one["norm"] == 1 for one in found.values())
    matrices = Counter(one["mlp"] for one in found.values())
    assert set(matrices) <= {1, 2}
    assert abs(matrices[1] - matrices[2]) == layers % 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_half_of_every_kind_in_every_block_of_a_gpt2(seed: int) -> None:
    frozen = HalfFreeze(gpt2(), seed=seed).frozen
    found = counts(frozen)
    assert set(found) == {f"transformer.h.{place}" for place in range(4)}
    assert all(one == Counter(attention=1, mlp=1, norm=1) for one in found.values())
    # A bias goes with its weight.
    weights = {n.removesuffix(".weight") for n in frozen if n.endswith(".weight")}
    biases = {n.removesuffix(".bias") for n in frozen if n.endswith(".bias")}
    assert weights == biases


@pytest.mark.parametrize("build", [llama, gpt2])
def test_what_is_frozen_keeps_its_bits_and_all_else_trains(build: Callable[[], nn.Module]) -> None:
    model, start = build(), bits_of(build())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    with HalfFreeze(model) as freeze:
        train(model, optimizer, micro_batches(3, 2), clip=1.0)
    after = bits_of(model)
    still = {name for name, value in start.items() if torch.equal(after[name], value)}
    assert still == freeze.frozen
    assert_same_bits({n: after[n] for n in still}, {n: start[n] for n in still})
    outside = {name for name in start if not re.search(r"\.\d+\.", name)}
    assert outside
    assert not outside & still
    sizes = {name: value.numel() for name, value in start.items()}
    trained = sum(size for name, size in sizes.items() if name not in still)
    assert freeze.coverage() == trained / sum(sizes.values())


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_seed_decides_once_and_for_all(build: Callable[[], nn.Module]) -> None:
    frozen = [frozenset(HalfFreeze(build(), seed=seed).frozen) for seed in range(6)]
    assert len(set(frozen)) > 3
    assert HalfFreeze(build(), seed=4).frozen == frozen[4]


def test_what_is_excluded_is_not_frozen() -> None:
    frozen = HalfFreeze(llama(), exclude=r"layers\.0\.|norm").frozen
    assert frozen
    assert all(re.search(r"layers\.1\.(self_attn|mlp)", name) for name in frozen)
