"""The largest eigenvalues of the Hessian and their eigenvectors, by Lanczos iteration on
Hessian-vector products: the Hessian itself is never formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError
from deltalens.scoring.differentiable import LossPart
from deltalens.studies.slots import Slot

__all__ = ["top_of_hessian"]

_RESTARTS = 60
_BASIS = 12
"""Lanczos vectors that are held at the same time; each is as large as the model."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}

Array = np.ndarray[Any, np.dtype[Any]]


def top_of_hessian(
    model: nn.Module,
    slots: Sequence[Slot],
    parts: Sequence[LossPart],
    count: int,
    seed: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Compute the algebraically largest eigenvalues of the loss's Hessian at the model's weights,
    by `scipy.sparse.linalg.eigsh`.

    The Hessian is taken over the entries of the slots. Copies of them change with them; all other
    weights are constant.

    Args:
        model: the model, in evaluation mode.
        slots: the entries over which the Hessian is taken, n in total.
        parts: of the loss; differentiated one after the other, so that only one graph is held.
        count: number of eigenvalues, below n.
        seed: of the initial vector.
        advance: called with 1 after every Hessian-vector product.

    Returns:
        The eigenvalues, descending; and their eigenvectors of norm 1, each as slot name -> 1-D
        tensor on the CPU.

    Raises:
        DeltaLensError: n is not above `count`, a gradient is not finite, or the iteration does not
            converge.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    size = sum(slot.size for slot in slots)
    if size <= count:
        raise DeltaLensError(
            f"{size} parameters are moved; {count} eigenvectors require at least {count + 1}"
        )
    wide = all(slot.work == torch.float64 for slot in slots)
    dtype = torch.float64 if wide else torch.float32
    number = np.float64 if wide else np.float32

    def product(vector: Array) -> Array:
        flat = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype=number))
        result = _product(model, slots, parts, flat)
        advance(1)
        if not np.isfinite(result).all():
            raise DeltaLensError(
                "the gradient of the loss is not finite at the origin, so it has no Hessian"
            )
        return result

    start = torch.empty(size, dtype=dtype).normal_(generator=torch.Generator().manual_seed(seed))
    operator = LinearOperator((size, size), matvec=product, dtype=number)
    with _trainable(slots):
        try:
            values, vectors = eigsh(
                operator,
                k=count,
                which="LA",
                v0=start.numpy(),
                ncv=min(size, max(_BASIS, 2 * count + 1)),
                maxiter=_RESTARTS,
                tol=_TOLERANCE[dtype],
            )
        except ArpackNoConvergence as error:
            raise DeltaLensError(
                f"Lanczos did not converge in {_RESTARTS} restarts: the largest eigenvalues are "
                "too close together, or the loss is not smooth at the origin; use more rows "
                "(`limit`) or another `seed`"
            ) from error
    descending = np.argsort(values)[::-1]
    eigenvectors = []
    for index in descending:
        flat = torch.from_numpy(np.ascontiguousarray(vectors[:, index]))
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        flat = flat * (1 if flat[flat.abs().argmax()] > 0 else -1)
        eigenvectors.append(_by_slot(slots, flat))
    return [float(values[index]) for index in descending], eigenvectors


def _product(
    model: nn.Module, slots: Sequence[Slot], parts: Sequence[LossPart], vector: Tensor
) -> Array:
    """The Hessian-vector product H v, (n,) over the entries of the slots."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # A slot and its copies are one variable.
    memories = [(slot.name, memory) for slot in slots for memory in (slot, *slot.copies)]
    parameters = list({id(memory.owner): memory.owner for _, memory in memories}.values())
    vectors = {id(parameter): torch.zeros_like(parameter) for parameter in parameters}
    by_slot = _by_slot(slots, vector)
    for name, memory in memories:
        part = memory.part_of(vectors[id(memory.owner)])
        part.copy_(by_slot[name].view(memory.view.shape))
    total = {id(parameter): torch.zeros_like(parameter) for parameter in parameters}
    # Fused attention kernels cannot be differentiated twice.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for loss in parts:
            gradients = torch.autograd.grad(
                loss(model), parameters, create_graph=True, materialize_grads=True
            )
            curved = [
                pair for pair in zip(gradients, parameters, strict=True) if pair[0].requires_grad
            ]
            if not curved:
                continue
            products = torch.autograd.grad(
                [gradient for gradient, _ in curved],
                parameters,
                [vectors[id(parameter)] for _, parameter in curved],
                materialize_grads=True,
            )
            for parameter, product in zip(parameters, products, strict=True):
                total[id(parameter)] += product.detach()
    pieces: dict[str, Tensor] = {}
    for name, memory in memories:
        piece = memory.part_of(total[id(memory.owner)]).reshape(-1).to("cpu", vector.dtype)
        pieces[name] = pieces[name] + piece if name in pieces else piece
    return torch.cat(list(pieces.values())).numpy()


def _by_slot(slots: Sequence[Slot], flat: Tensor) -> dict[str, Tensor]:
    """Split a vector over all entries into one per slot."""
    pieces = flat.split([slot.size for slot in slots])
    return {slot.name: piece for slot, piece in zip(slots, pieces, strict=True)}


@contextmanager
def _trainable(slots: Sequence[Slot]) -> Iterator[None]:
    """Let the slots' parameters require gradients within the block."""
    owners = [memory.owner for slot in slots for memory in (slot, *slot.copies)]
    before = [(owner, owner.requires_grad) for owner in owners]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
