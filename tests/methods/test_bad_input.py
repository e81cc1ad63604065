"""What is asked of a mask, or given to it, that cannot be: one clear error with the case in it."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import DeltaLensError, GradientMask, HalfFreeze, RandomMask
from deltalens.methods.masking import StepMask
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

pytestmark = [pytest.mark.oracle, pytest.mark.bad_input]

RATIOS = [-0.1, 1, "1.0", 1.5, math.nan, math.inf, "half"]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("method", [GradientMask, RandomMask])
def test_a_ratio_outside(method: Callable[..., StepMask], ratio: float | str) -> None:
    with pytest.raises(DeltaLensError, match=f"rat(io|e) '?{ratio}"):
        method(awkward(), ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ratio_outside_from_a_schedule(ratio: float | str) -> None:
    model = awkward()
    optimizer = torch.optim.AdamW(model.parameters())
    data = micro_batches(2, 1)

    def training() -> None:
        with GradientMask(model, schedule=lambda step: ratio if step else 0.2):
            train(model, optimizer, data[:1])
            before.update(bits_of(model))
            train(model, optimizer, data[1:])

    before: dict[str, torch.Tensor] = {}
    with pytest.raises(DeltaLensError, match=f"rat(io|e) '?{ratio}"):
        training()
    assert_same_bits(bits_of(model), before)


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        (GradientMask, {"scope": "block"}),
        (GradientMask, {"apply_to": "weights"}),
        (GradientMask, {"on_nonfinite": "ignore"}),
        (RandomMask, {"apply_to": "weights"}),
        (RandomMask, {"resample": "epoch"}),
        (RandomMask, {"draw": "gumbel"}),
    ],
    ids=str,
)
def test_an_unknown_choice_is_told_with_the_known_ones(
    method: Callable[..., StepMask], spec: dict[str, Any]
) -> None:
    ((option, value),) = spec.items()
    with pytest.raises(DeltaLensError, match=f"{option}.*{value!r}: choose one of [a-z]+, [a-z]+"):
        method(awkward(), **spec)


@pytest.mark.parametrize("method", [GradientMask, RandomMask, HalfFreeze])
def test_nothing_to_mask_shows_the_nearest_names(method: Callable[..., StepMask]) -> None:
    with pytest.raises(DeltaLensError, match=r"layer\.0\.weigth(.|\n)*layers\.0\.weight"):
        method(awkward(), include="layer.0.weigth")
    with pytest.raises(DeltaLensError, match=r"exclude '\.' leaves no parameter"):
        method(awkward(), exclude=".")
    with pytest.raises(DeltaLensError, match="not a valid regular expression"):
        method(awkward(), include="(")


@pytest.mark.parametrize("method", [GradientMask, RandomMask, HalfFreeze])
def test_attached_twice(method: Callable[..., StepMask]) -> None:
    model = awkward()
    with method(model) as mask:
        with pytest.raises(DeltaLensError, match=f"{method.__name__} is attached already"):  # type: ignore[attr-defined]
            mask.attach()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), micro_batches(1, 1))
    assert mask.steps == 1


@pytest.mark.parametrize("method", [GradientMask, RandomMask, HalfFreeze])
def test_an_optimizer_of_another_model(method: Callable[..., StepMask]) -> None:
    other = torch.optim.SGD(awkward().parameters(), lr=0.1)
    with pytest.raises(DeltaLensError, match="SGD steps no parameter of Awkward"):
        method(awkward(), optimizer=other).attach()


def test_no_step_seen_is_a_warning() -> None:
    mask, other = GradientMask(awkward()).attach(), awkward()
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), micro_batches(1, 1))
    with pytest.warns(UserWarning, match="GradientMask saw no optimizer step"):
        mask.detach()


def test_half_of_no_blocks() -> None:
    with pytest.raises(DeltaLensError, match="no transformer blocks"):
        HalfFreeze(nn.Linear(3, 3))


# --- a gradient that is not finite ----------------------------------------------------------------

SPOILED = "layers.0.weight"


class Spoiled:
    """A training whose second step has a NaN or an infinity in one gradient."""

    def __init__(self, value: float, name: str = SPOILED) -> None:
        self.model, self._value, self._name = awkward(), value, name
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=0.1)
        self.seen = seen_by(self.optimizer, self.model)
        self._data = batches()

    def step(self, spoil: bool) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        loss_of(self.model, next(self._data)).backward()
        if spoil:
            self.model.get_parameter(self._name).grad.view(-1)[5] = self._value
        given = gradients_of(self.model)
        self.optimizer.step()
        return given


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_it_raises_and_names_tensor_and_step(value: float, apply_to: str) -> None:
    run = Spoiled(value)
    mask = GradientMask(run.model, 0.5, first_step=7, apply_to=apply_to).attach()
    run.step(spoil=False)
    before, state = bits_of(run.model), copy.deepcopy(run.optimizer.state_dict())
    with pytest.raises(DeltaLensError, match=rf"step 8: .*not finite(.|\n)*{SPOILED}"):
        run.step(spoil=True)
    assert_same_bits(bits_of(run.model), before)
    torch.testing.assert_close(run.optimizer.state_dict(), state, rtol=0, atol=0)
    # A training that catches it goes on.
    given = run.step(spoil=False)
    assert_same_bits(run.seen[-1], gmt.masked(given, gmt.masks(given, 0.5)))
    mask.detach()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_it_skips_the_step(value: float, scope: str, apply_to: str) -> None:
    run = Spoiled(value)
    spec: dict[str, Any] = {"scope": scope, "apply_to": apply_to, "on_nonfinite": "skip"}
    with GradientMask(run.model, 0.5, **spec) as mask:
        run.step(spoil=False)
        covered = mask.coverage()
        before, state = bits_of(run.model), copy.deepcopy(run.optimizer.state_dict())
        run.step(spoil=True)
        assert_same_bits(bits_of(run.model), before)
        torch.testing.assert_close(run.optimizer.state_dict(), state, rtol=0, atol=0)
        assert mask.coverage() == covered
        given = run.step(spoil=False)
        assert_same_bits(run.seen[-1], gmt.masked(given, gmt.masks(given, 0.5, scope)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("scope", ["tensor", "layer"])
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_it_passes_and_the_others_are_masked(value: float, scope: str, apply_to: str) -> None:
    run = Spoiled(value)
    spec: dict[str, Any] = {"scope": scope, "apply_to": apply_to, "on_nonfinite": "pass"}
    with GradientMask(run.model, 0.5, **spec) as mask:
        given = run.step(spoil=True)
    masks = {}
    for unit in gmt.units(given, scope):
        some = {name: given[name] for name in unit}
        masks |= gmt.masks(some, 0 if SPOILED in unit else 0.5, scope)
    masks[SPOILED][...] = True  # no number reaches a NaN
    # assert_same_bits knows NaNs by their bits.
    assert_same_bits(run.seen[0], gmt.masked(given, masks))
    assert mask.coverage() == gmt.coverage([masks])


def test_what_is_excluded_may_be_anything() -> None:
    run = Spoiled(math.nan)
    with GradientMask(run.model, 0.5, exclude=SPOILED):
        given = run.step(spoil=True)
    ranked = {name: gradient for name, gradient in given.items() if name != SPOILED}
    assert_same_bits(run.seen[0], {**given, **gmt.masked(ranked, gmt.masks(ranked, 0.5))})


# --- a sparse gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", [GradientMask, RandomMask])
def test_a_sparse_gradient(method: Callable[..., StepMask]) -> None:
    model = llama()
    embed = nn.Embedding(*model.model.embed_tokens.weight.shape, sparse=True)
    model.model.embed_tokens, model.config.tie_word_embeddings = embed, False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        model.zero_grad()
        loss_of(model, next(batches())).backward()
        assert embed.weight.grad is not None
        assert embed.weight.grad.is_sparse
        optimizer.step()

    mask = method(model, exclude="embed")
    with mask:
        step()
    assert mask.steps == 1
    before, mask = bits_of(model), method(model).attach()
    with pytest.raises(
        DeltaLensError, match=r"'model\.embed_tokens\.weight' has a sparse gradient"
    ):
        step()
    assert_same_bits(bits_of(model), before)
    mask.detach()
