"""Products of the Hessian with a gradient, for GRaSP: exact, or as a difference of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from deltalens.errors import DeltaLensError, errors_from
from deltalens.methods.salience.calibration import Batch, Calibration, accumulator
from deltalens.methods.salience.preserved import computed_plainly

__all__ = ["RELATIVE_STEP", "difference_products", "exact_products"]

RELATIVE_STEP = 1e-3
"""The step of the difference: its norm over that of the weights."""

Tensors = Mapping[str, Tensor]


def exact_products(run: Calibration, direction: Tensors | None) -> dict[str, Tensor]:
    """Compute the mean over batches of Hessian times gradient, by differentiating twice.

    The Hessian is that of the weights that are looked at. Attention is computed step by step
    meanwhile, as its fused kernels have no second derivative.

    Args:
        run: the model and its batches.
        direction: weight name -> the gradient that every batch's Hessian is multiplied with; None:
            each batch's own.

    Returns:
        Weight name -> product, of its shape.

    Raises:
        DeltaLensError: an operation of the model has no second derivative.
    """
    products = {name: accumulator(weight) for name, weight in run.weights.items()}

    def take(name: str, gradient: Tensor) -> None:
        products[name].add_(gradient)

    with computed_plainly(run.model, "attn"), run.gradients(take):
        for given in run.batches:
            loss = run.loss_of(run.on_device(given))
            gradients = torch.autograd.grad(
                loss, list(run.weights.values()), create_graph=True, allow_unused=True
            )
            found = {
                name: gradient
                for name, gradient in zip(run.weights, gradients, strict=True)
                if gradient is not None
            }
            along = (
                {name: each.detach() for name, each in found.items()}
                if direction is None
                else direction
            )
            total = torch.stack(
                [(each * along[name].to(each.dtype)).sum() for name, each in found.items()]
            ).sum()
            run.reached.update(found)
            del gradients, found, loss
            if total.requires_grad:
                with errors_from(
                    "torch",
                    "GRaSP differentiates twice, and this model cannot be",
                    hint="take hessian='difference'",
                ):
                    total.backward()
            run.watch.advance(1)
    return {name: product.div_(len(run.batches)) for name, product in products.items()}


def difference_products(run: Calibration, gradients: Tensors | None) -> dict[str, Tensor]:
    """Estimate the mean over batches of Hessian times gradient by a difference of gradients.

    (g(theta + step * g) - g(theta)) / step, with a step of `RELATIVE_STEP` times the weights' norm.
    The weights are moved in place, and get their bits back.

    Args:
        run: the model and its batches.
        gradients: weight name -> mean gradient; its memory is reused. None: each batch's own.

    Returns:
        Weight name -> product, of its shape.

    Raises:
        DeltaLensError: the weights are of half precision, or the gradient is 0.
    """
    half = [name for name, weight in run.weights.items() if weight.dtype.itemsize < 4]
    if half:
        kind = str(run.weights[half[0]].dtype).removeprefix("torch.")
        raise DeltaLensError(
            f"hessian='difference' needs weights of fp32 or fp64, and {half[0]} is {kind}: so "
            "small a step is lost in its rounding; take hessian='exact', or load the model in fp32"
        )
    if gradients is not None:
        moved = _gradients_beside(run, gradients, run.batches)
        return _difference(moved, gradients, _step(run, gradients))
    products = {name: accumulator(weight) for name, weight in run.weights.items()}
    for batch in run.batches:
        own = _mean_gradients(run, [batch])
        step = _step(run, own)
        for name, product in _difference(_gradients_beside(run, own, [batch]), own, step).items():
            products[name].add_(product)
    return {name: product.div_(len(run.batches)) for name, product in products.items()}


def _difference(moved: dict[str, Tensor], gradients: Tensors, step: float) -> dict[str, Tensor]:
    return {name: each.sub_(gradients[name]).div_(step) for name, each in moved.items()}


def _mean_gradients(run: Calibration, batches: Sequence[Batch]) -> dict[str, Tensor]:
    totals = {name: accumulator(weight) for name, weight in run.weights.items()}

    def take(name: str, gradient: Tensor) -> None:
        totals[name].add_(gradient)

    run.backward(take, batches)
    return {name: total.div_(len(batches)) for name, total in totals.items()}


def _gradients_beside(
    run: Calibration, direction: Tensors, batches: Sequence[Batch]
) -> dict[str, Tensor]:
    with _moved(run, direction, _step(run, direction)):
        return _mean_gradients(run, batches)


def _step(run: Calibration, direction: Tensors) -> float:
    sizes = [
        float(torch.stack([each.detach().double().norm() for each in tensors.values()]).norm())
        for tensors in (run.weights, direction)
    ]
    if not sizes[1]:
        raise DeltaLensError("the gradient of the loss is 0: there is no direction for GRaSP")
    return RELATIVE_STEP * sizes[0] / sizes[1]


@contextmanager
def _moved(run: Calibration, direction: Tensors, step: float) -> Iterator[None]:
    """Move the weights along a direction; afterwards they have their bits back."""
    saved = {name: weight.detach().clone() for name, weight in run.weights.items()}
    try:
        with torch.no_grad():
            for name, weight in run.weights.items():
                weight.add_(direction[name], alpha=step)
        yield
    finally:
        with torch.no_grad():
            for name, weight in run.weights.items():
                weight.copy_(saved[name])
