"""Directions in weight space, formed tensor by tensor: none has to be held as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltalens.errors import DeltaLensError
from deltalens.numerics.hashing import name_key
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import Mapper
from deltalens.studies.slots import Slot
from deltalens.studies.weights import Weights, read_difference, runs

__all__ = [
    "NORMALIZATIONS",
    "Combination",
    "RandomDirection",
    "StoredDirection",
    "random_directions",
]

NORMALIZATIONS = ("filter", "layer", "model")


class Combination:
    """A weighted sum of differences between checkpoints and the origin: sum_i c_i (W_i - origin).

    All directions between checkpoints have this form, including principal components.

    Args:
        origin: the weights at the origin.
        terms: (W_i, c_i); terms with c_i = 0 are not read.
    """

    def __init__(self, origin: Weights, terms: Sequence[tuple[Weights, float]]) -> None:
        self._origin, self._terms = origin, [term for term in terms if term[1]]
        self._scratch = Scratch()

    def fill(self, slot: Slot, out: Tensor) -> None:
        """See `Direction`."""
        out.zero_()
        for start, stop in runs(0, slot.size):
            part = out[start:stop]
            origin = self._scratch.get("origin", part.dtype, part.numel(), part.device)
            other = self._scratch.get("other", part.dtype, part.numel(), part.device)
            self._origin.read(slot.name, start, origin)
            for weights, factor in self._terms:
                difference = read_difference(weights, origin, slot.name, start, other)
                part[: len(difference)].add_(difference, alpha=factor)


class StoredDirection:
    """A direction that is stored in a file.

    Args:
        weights: the file's tensors.
        prefix: of the names of the direction's tensors in the file.
    """

    def __init__(self, weights: Weights, prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def fill(self, slot: Slot, out: Tensor) -> None:
        """See `Direction`."""
        self._weights.read(self._prefix + slot.name, 0, out)


class _InnerProducts(NamedTuple):
    """Inner products over all slots of a model: of its weights w and two Gaussian directions."""

    weights: float
    """<w, w>"""
    first: float
    """<d1, d1>"""
    second: float
    """<d2, d2>"""
    both: float
    """<d1, d2>"""


class RandomDirection:
    """A Gaussian direction, drawn for each tensor from the seed and the tensor's name.

    `filter` (Li et al. 2018, arXiv 1712.09913, section 4): every filter of the direction has the
    norm of the model's filter. As in the paper, a filter of a matrix is the row that makes one
    output (always the first dimension, even if GPT-2 stores the matrix transposed), and tensors of
    one dimension (norms, biases) do not move. In an embedding, each token's vector is a filter.
    `layer`: every tensor of the direction has the norm of the model's tensor; tensors of one
    dimension do not move. `model`: all tensors are scaled by one factor, including norms and
    biases.

    The second direction is orthogonal to the first: per filter, per tensor, or over the whole
    model. (A filter of one entry has no orthogonal direction, and does not move.)

    Args:
        origin: the model's weights.
        seed: of the random numbers.
        index: 0 for the first direction, 1 for the second.
        normalize: `filter`, `layer` or `model`.
        products: for `model`: inner products over the whole model.
    """

    def __init__(
        self,
        origin: Weights,
        seed: int,
        index: int,
        normalize: str,
        products: _InnerProducts | None,
    ) -> None:
        self._origin, self._seed, self._index = origin, seed, index
        self._normalize, self._products = normalize, products
        self._scratch = Scratch()

    def fill(self, slot: Slot, out: Tensor) -> None:
        """See `Direction`."""
        if self._normalize != "model" and slot.view.dim() <= 1:
            out.zero_()
            return
        self._draw(slot, self._index, out)
        first = None
        if self._index:
            first = self._scratch.get("first", out.dtype, slot.size, out.device)
            self._draw(slot, 0, first)
        if self._products is not None:
            squared_norm = self._products.first
            if first is not None:
                projection = self._products.both / self._products.first
                squared_norm = self._products.second - projection * self._products.both
                out.sub_(first, alpha=projection)
            out.mul_(math.sqrt(self._products.weights / squared_norm))
            return
        weights = self._scratch.get("weights", out.dtype, slot.size, out.device)
        self._origin.read(slot.name, 0, weights)
        units = slot.view.shape[0] if self._normalize == "filter" else 1
        rows, model_rows = out.view(units, -1), weights.view(units, -1)
        if first is not None:
            _make_orthogonal(rows, first.view(units, -1))
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        model_norms = torch.linalg.vector_norm(model_rows, dim=1, keepdim=True)
        rows.mul_(torch.where(norms > 0, model_norms / norms, torch.zeros_like(norms)))

    def _draw(self, slot: Slot, index: int, out: Tensor) -> None:
        _draw(slot, self._seed, index, out, self._scratch)


def _draw(slot: Slot, seed: int, index: int, out: Tensor, scratch: Scratch) -> None:
    """Fill `out` with standard normal numbers, drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(
        name_key(seed, f"{index}/{slot.name}") & (1 << 63) - 1
    )
    if out.device.type == "cpu":
        out.normal_(generator=generator)
        return
    drawn = scratch.get("drawn", out.dtype, slot.size)
    out.copy_(drawn.normal_(generator=generator))


def _make_orthogonal(rows: Tensor, others: Tensor) -> None:
    """Subtract from each row its projection onto the same row of `others`; a row of one entry
    becomes 0."""
    if rows.shape[1] == 1:
        rows.zero_()
        return
    projections = (rows * others).sum(1, keepdim=True) / others.square().sum(1, keepdim=True)
    rows.sub_(projections * others)


def random_directions(
    origin: Weights, slots: Sequence[Slot], count: int, seed: int, normalize: str, mapper: Mapper
) -> list[RandomDirection]:
    """Make random directions; `model` requires one pass over the weights, for their norm.

    Args:
        origin: the model's weights.
        slots: the tensors that move.
        count: 1 or 2 directions.
        seed: of the random numbers.
        normalize: `filter`, `layer` or `model` (see `RandomDirection`).
        mapper: visits the slots.

    Returns:
        The directions; the second is orthogonal to the first.

    Raises:
        DeltaLensError: there is no such normalization.
    """
    if normalize not in NORMALIZATIONS:
        raise DeltaLensError(f"normalize {normalize!r}: choose from {', '.join(NORMALIZATIONS)}")
    products = None
    if normalize == "model":
        scratch = Scratch()

        def products_of(slot: Slot) -> tuple[float, float, float, float]:
            first, second, weights = (
                scratch.get(name, slot.work, slot.size) for name in ("first", "second", "weights")
            )
            _draw(slot, seed, 0, first, scratch)
            _draw(slot, seed, 1, second, scratch)
            origin.read(slot.name, 0, weights)
            pairs = ((weights, weights), (first, first), (second, second), (first, second))
            ww, first_first, second_second, first_second = (
                float((x.double() * y.double()).sum()) for x, y in pairs
            )
            return ww, first_first, second_second, first_second

        by_slot = list(mapper(products_of, slots))
        products = _InnerProducts(*map(math.fsum, zip(*by_slot, strict=True)))
    return [RandomDirection(origin, seed, index, normalize, products) for index in range(count)]
