"""Each metric is what a slow twin in fp64 computes, with the expectation inside and outside."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation

from deltalens import salience
from deltalens.catalog.salience import SALIENCE_METRICS
from tests.support.oracles.salience import NAMES, Twin, batches_for, synflow, two_layers

pytestmark = pytest.mark.oracle

TARGETS = ["first", "second"]
WITH_DATA = [name for name, facts in SALIENCE_METRICS.items() if not facts.data_free]
LAYOUTS = {"batches": {}, "single examples": {"examples": 1}, "one batch": {"count": 1}}


def assert_close(found: Any, wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(each.abs().max()) for each in wanted.values())
    for name, scores in found.items():
        assert scores.shape == wanted[name].shape
        assert float((scores - wanted[name]).abs().max()) <= tolerance * largest, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("expectation", ["inside", "outside"])
@pytest.mark.parametrize("metric", WITH_DATA)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)], ids=["fp32", "fp64"]
)
def test_a_metric_is_its_twins(
    metric: Any, expectation: Any, layout: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, batches = two_layers(dtype), batches_for(dtype=dtype, **LAYOUTS[layout])
    found = salience(model, batches, metric, targets=TARGETS, expectation=expectation)
    assert {scores.dtype for scores in found.scores.values()} == {dtype}
    assert_close(found.scores, Twin(model, batches).scores(metric, expectation), tolerance)


@pytest.mark.parametrize("expectation", ["inside", "outside"])
def test_several_metrics_at_once_are_the_same(expectation: Any) -> None:
    model, batches = two_layers(), batches_for()
    together = salience(model, batches, WITH_DATA, targets=TARGETS, expectation=expectation)
    assert [*together] == WITH_DATA
    for metric, found in together.items():
        wanted = Twin(model, batches).scores(metric, expectation)
        assert_close(found.scores, wanted, 3e-6)


@pytest.mark.parametrize("expectation", ["inside", "outside"])
def test_the_difference_of_gradients_is_near_the_exact_product(expectation: Any) -> None:
    model, batches = two_layers(), batches_for()
    found = salience(
        model, batches, "grasp", targets=TARGETS, hessian="difference", expectation=expectation
    )
    assert_close(found.scores, Twin(model, batches).scores("grasp", expectation), 2e-3)


def test_the_sign_of_grasp_turns_its_order_around() -> None:
    model, batches = two_layers(), batches_for()
    one, other = (salience(model, batches, "grasp", targets=TARGETS, sign=sign) for sign in (1, -1))
    for name in NAMES:
        assert torch.equal(one.scores[name], -other.scores[name])


def test_fisher_is_no_square_of_the_mean_gradient() -> None:
    model, batches = two_layers(), batches_for()
    fisher, gradient = (
        salience(model, batches, metric, targets=TARGETS) for metric in ("fisher", "gradient")
    )
    for name in NAMES:
        assert bool((fisher.scores[name] > gradient.scores[name] ** 2).all())


ACTIVATIONS = [torch.tanh, nn.Tanh(), nn.functional.gelu, NewGELUActivation(), torch.Tensor.sigmoid]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_synflow_has_a_closed_form_whatever_the_activation(activation: Any) -> None:
    model = two_layers(bias=False, activation=activation)
    found, wanted = salience(model, [], "synflow", targets=TARGETS).scores, synflow(model)
    # The scores share one power of two.
    scale = 2.0 ** round(float((wanted["first.weight"] / found["first.weight"]).log2().mean()))
    scaled = {name: scores.double() * scale for name, scores in found.items()}
    assert_close(scaled, wanted, 1e-7)
    assert 0.5 <= max(float(scores.max()) for scores in found.values()) <= 1


def test_synflow_stays_finite_where_fp32_overflows() -> None:
    model = two_layers(bias=False)
    with torch.no_grad():
        model.first.weight *= 1e30
        model.second.weight *= 1e30
    found = salience(model, [], "synflow", targets=TARGETS).scores
    reference = salience(two_layers(bias=False), [], "synflow", targets=TARGETS).scores
    for name, scores in found.items():
        assert torch.isfinite(scores).all()
        assert torch.equal(scores.flatten().argsort(), reference[name].flatten().argsort())


def test_magnitude() -> None:
    model = two_layers()
    assert_close(
        salience(model, [], "magnitude", targets=TARGETS).scores,
        Twin(model, []).scores("magnitude", "inside"),
        0,
    )


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.9])
def test_taylor_keeps_what_snip_keeps_inside_and_not_outside(density: float) -> None:
    model, batches = two_layers(hidden=64), batches_for(12)

    def kept(expectation: Any) -> list[list[torch.Tensor]]:
        metrics = ["taylor-fo", "snip"]
        found = salience(model, batches, metrics, targets=TARGETS, expectation=expectation)
        return [list(found[name].indices(density).values()) for name in metrics]

    def equal(expectation: Any) -> bool:
        one, other = kept(expectation)
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert equal("inside")
    assert not equal("outside")


def test_random_depends_on_its_seed_alone() -> None:
    def kept(seed: int) -> set[int]:
        found = salience(two_layers(hidden=512), [], "random", targets=["first"], seed=seed)
        return set(found.indices(0.25)["first.weight"].tolist())

    assert kept(1) == kept(1)
    common = len(kept(1) & kept(2))
    assert abs(common - 512 * 3 / 16) < 45
