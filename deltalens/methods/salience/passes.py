"""The scores of several metrics, one metric after the other, in as few passes as they can share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from deltalens.catalog.salience import Expectation
from deltalens.methods.mask_layers import Layer
from deltalens.methods.salience.calibration import Calibration, accumulator
from deltalens.methods.salience.examples import ExampleGradients
from deltalens.methods.salience.second_order import difference_products, exact_products
from deltalens.methods.salience.synflow import synflow_scores
from deltalens.methods.salience.terms import TERMS, Term, Terms
from deltalens.numerics.hashing import hashed_range, name_key

__all__ = ["HessianWay", "PassOptions", "scores_by_metric"]

HessianWay = Literal["exact", "difference"]
"""How GRaSP multiplies with the Hessian: by differentiating twice, or by a difference of gradients
at two points."""
Tensors = dict[str, Tensor]
Found = tuple[str, Tensors, tuple[str, ...]]
"""A metric, its scores by weight name, and notes about it."""


@dataclass(frozen=True)
class PassOptions:
    """How metrics are computed; see `salience`."""

    expectation: Expectation = "inside"
    sign: int = 1
    hessian: HessianWay = "exact"
    seed: int = 0


def scores_by_metric(
    run: Calibration, names: Sequence[str], options: PassOptions
) -> Iterator[Found]:
    """Compute the scores of metrics; those that take gradients share a pass.

    Args:
        run: the model and its batches.
        names: the metrics.
        options: how they are computed.

    Yields:
        Each metric, its scores and notes; those without data first. Nothing yielded is kept.

    Raises:
        DeltaLensError: a loss has no gradient, or no loss depends on a weight.
    """
    for name in names:
        if name in _WITHOUT_DATA:
            yield name, _WITHOUT_DATA[name](run.model, run.layers, options.seed), ()
    if not run.batches:
        return
    expectation = options.expectation
    family = [name for name in names if (name, expectation) in TERMS]
    kinds: list[Term] = [TERMS[name, expectation] for name in family]
    mean_later = "grasp" in names and expectation == "inside"
    if mean_later:
        kinds.append("mean")
    terms = Terms(run.weights, [*dict.fromkeys(kinds)]) if kinds else None
    squares = None
    if "fisher" in names or terms is not None:
        run.watch.begin("gradients of the loss", len(run.batches))
    if "fisher" in names:
        squares = ExampleGradients(run, terms.take if terms else None)
        squares.accumulate()
    elif terms is not None:
        run.backward(terms.take)
    if run.reached:
        run.check_reached()
    if squares is not None:
        separately = ("a pass for every example of a batch",) if squares.separately else ()
        yield "fisher", squares.means(), separately
        squares = None
    means: Tensors | None = None
    if terms is not None:
        by_kind = {kind: terms.means(kind, len(run.batches)) for kind in dict.fromkeys(kinds)}
        means = by_kind["mean"] if mean_later else None
        del by_kind
        for index, name in enumerate(family):
            last = kinds[index] not in kinds[index + 1 :]
            yield name, terms.scores(name, expectation, last), ()
    if "grasp" in names:
        exact = options.hessian == "exact"
        way = exact_products if exact else difference_products
        # Without a mean to move along, a batch has a pass at each of two points.
        run.watch.begin("Hessian products", len(run.batches) * (1 if exact or mean_later else 2))
        products = way(run, means)
        run.check_reached()
        for name, product in products.items():
            product.mul_(run.weights[name].detach()).mul_(-options.sign)
        yield "grasp", products, ()


# --- metrics without data -------------------------------------------------------------------------


def _magnitudes(model: nn.Module, layers: Sequence[Layer], seed: int) -> Tensors:
    weights = {layer.weight_name: layer.module.get_parameter("weight") for layer in layers}
    return {
        name: accumulator(weight).copy_(weight.detach()).abs_() for name, weight in weights.items()
    }


def _random(model: nn.Module, layers: Sequence[Layer], seed: int) -> Tensors:
    """Uniform in [0, 1): the leading bits of the hash that breaks ties."""
    scores: Tensors = {}
    for layer in layers:
        weight, name = layer.module.get_parameter("weight"), layer.weight_name
        found = accumulator(weight)
        flat, start = found.view(-1), 0
        for hashes in hashed_range(0, weight.numel(), name_key(seed, name), weight.device):
            flat[start : start + len(hashes)] = (hashes >> 40) + (1 << 23)
            start += len(hashes)
        scores[name] = found.mul_(2.0**-24)
    return scores


def _synflow(model: nn.Module, layers: Sequence[Layer], seed: int) -> Tensors:
    return synflow_scores(model, layers)


_WITHOUT_DATA: dict[str, Callable[[nn.Module, Sequence[Layer], int], Tensors]] = {
    "magnitude": _magnitudes,
    "synflow": _synflow,
    "random": _random,
}
