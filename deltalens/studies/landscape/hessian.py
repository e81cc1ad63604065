"""The Hessian's largest eigenvalues and their eigenvectors, by Lanczos over Hessian-vector
products: the Hessian itself is never formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError
from deltalens.scoring.differentiable import LossPart
from deltalens.studies.places import Slot

__all__ = ["top_of_hessian"]

_RESTARTS = 60
_BASIS = 12
"""Lanczos vectors held at once: each takes the model's size."""
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
    """The algebraically largest eigenvalues of the loss's Hessian at the model's weights, over the
    entries of the slots (copies of them follow, all others are held fixed), by
    `scipy.sparse.linalg.eigsh`.

    Args:
        model: at the point in question, in evaluation mode.
        slots: the entries over which the Hessian is taken.
        parts: of the loss; differentiated one after the other, so that one graph is held at a time.
        count: how many.
        seed: of the vector that Lanczos begins with.
        advance: told of every product.

    Returns:
        The eigenvalues, descending, and for each its eigenvector, of length 1, by slot: 1-D, on the
        CPU.

    Raises:
        DeltaLensError: fewer entries than asked for, a gradient that is not finite, or no
            convergence.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    size = sum(slot.size for slot in slots)
    if size <= count:
        raise DeltaLensError(f"{size} parameters have no {count} eigenvectors of their own")
    wide = all(slot.work == torch.float64 for slot in slots)
    dtype = torch.float64 if wide else torch.float32
    number = np.float64 if wide else np.float32

    def product(vector: Array) -> Array:
        flat = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype=number))
        found = _product(model, slots, parts, flat)
        advance(1)
        if not np.isfinite(found).all():
            raise DeltaLensError("the loss's gradient is not finite at the origin: no Hessian")
        return found

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
                f"Lanczos did not converge in {_RESTARTS} restarts: the largest eigenvalues lie "
                "too close together, or the loss is not smooth here; take more rows (--limit), or "
                "another seed"
            ) from error
    order = np.argsort(values)[::-1]
    found = []
    for place in order:
        flat = torch.from_numpy(np.ascontiguousarray(vectors[:, place]))
        # An eigenvector has no sign: its largest entry is positive.
        flat = flat * (1 if flat[flat.abs().argmax()] > 0 else -1)
        found.append(_by_slot(slots, flat))
    return [float(values[place]) for place in order], found


def _product(
    model: nn.Module, slots: Sequence[Slot], parts: Sequence[LossPart], vector: Tensor
) -> Array:
    """H v, as a flat array over the slots."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    placed = [(slot.name, one) for slot in slots for one in (slot, *slot.copies)]
    parameters = list({id(one.owner): one.owner for _, one in placed}.values())
    along = {id(parameter): torch.zeros_like(parameter) for parameter in parameters}
    by_slot = _by_slot(slots, vector)
    for name, one in placed:
        part = one.part_of(along[id(one.owner)])
        part.copy_(by_slot[name].view(one.view.shape))
    total = {id(parameter): torch.zeros_like(parameter) for parameter in parameters}
    # The fused kernels of attention cannot be differentiated twice.
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
                [along[id(parameter)] for _, parameter in curved],
                materialize_grads=True,
            )
            for parameter, found in zip(parameters, products, strict=True):
                total[id(parameter)] += found.detach()
    pieces: dict[str, Tensor] = {}
    for name, one in placed:
        piece = one.part_of(total[id(one.owner)]).reshape(-1).to("cpu", vector.dtype)
        pieces[name] = pieces[name] + piece if name in pieces else piece
    return torch.cat(list(pieces.values())).numpy()


def _by_slot(slots: Sequence[Slot], flat: Tensor) -> dict[str, Tensor]:
    pieces = flat.split([slot.size for slot in slots])
    return {slot.name: piece for slot, piece in zip(slots, pieces, strict=True)}


@contextmanager
def _trainable(slots: Sequence[Slot]) -> Iterator[None]:
    """The slots' parameters require gradients inside the block, whatever they did before."""
    owners = [one.owner for slot in slots for one in (slot, *slot.copies)]
    before = [(owner, owner.requires_grad) for owner in owners]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
