"""Directions in weight space, formed tensor by tensor: nothing needs to hold one whole."""

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
from deltalens.studies.places import Slot
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
    """A sum of differences between checkpoints and the origin: sum over i of c_i (W_i - origin).

    Every direction between checkpoints is one, principal components among them.
    """

    def __init__(self, origin: Weights, terms: Sequence[tuple[Weights, float]]) -> None:
        self._origin, self._terms = origin, [(w, c) for w, c in terms if c]
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
                found = read_difference(weights, origin, slot.name, start, other)
                part[: len(found)].add_(found, alpha=factor)


class StoredDirection:
    """A direction that was computed once and lies in a file."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def fill(self, slot: Slot, out: Tensor) -> None:
        """See `Direction`."""
        self._weights.read(self._prefix + slot.name, 0, out)


class _Sums(NamedTuple):
    """Inner products over all of a model."""

    weights: float
    first: float
    second: float
    both: float


class RandomDirection:
    """A Gaussian direction, drawn anew for each tensor from the seed and the tensor's name.

    `filter` (Li et al. 2018, arXiv 1712.09913, section 4): every filter has the norm of the
    model's own. As there, a filter of a matrix is the row that makes one output (always the first
    dimension, also where GPT-2 stores a matrix transposed), and tensors of one dimension (norms,
    biases) do not move. An embedding is a matrix whose filters are its tokens' vectors. `layer`
    gives every tensor the norm of the model's own, likewise. `model` gives all tensors one factor,
    norms and biases too.

    The second direction is orthogonal to the first: filter by filter, tensor by tensor, or over
    the model. (A filter of one entry has no such direction, and does not move.)
    """

    def __init__(
        self, origin: Weights, seed: int, place: int, normalize: str, sums: _Sums | None
    ) -> None:
        self._origin, self._seed, self._place = origin, seed, place
        self._normalize, self._sums = normalize, sums
        self._scratch = Scratch()

    def fill(self, slot: Slot, out: Tensor) -> None:
        """See `Direction`."""
        if self._normalize != "model" and slot.view.dim() <= 1:
            out.zero_()
            return
        self._draw(slot, self._place, out)
        first = None
        if self._place:
            first = self._scratch.get("first", out.dtype, slot.size, out.device)
            self._draw(slot, 0, first)
        if self._sums is not None:
            own, along = self._sums.first, 0.0
            if first is not None:
                along = self._sums.both / self._sums.first
                own = self._sums.second - along * self._sums.both
                out.sub_(first, alpha=along)
            out.mul_(math.sqrt(self._sums.weights / own))
            return
        weights = self._scratch.get("weights", out.dtype, slot.size, out.device)
        self._origin.read(slot.name, 0, weights)
        units = slot.view.shape[0] if self._normalize == "filter" else 1
        rows, own_rows = out.view(units, -1), weights.view(units, -1)
        if first is not None:
            _make_orthogonal(rows, first.view(units, -1))
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        wanted = torch.linalg.vector_norm(own_rows, dim=1, keepdim=True)
        rows.mul_(torch.where(norms > 0, wanted / norms, torch.zeros_like(norms)))

    def _draw(self, slot: Slot, place: int, out: Tensor) -> None:
        _draw(slot, self._seed, place, out, self._scratch)


def _draw(slot: Slot, seed: int, place: int, out: Tensor, scratch: Scratch) -> None:
    """Standard normal entries, on the CPU: the same whatever the device."""
    generator = torch.Generator().manual_seed(
        name_key(seed, f"{place}/{slot.name}") & (1 << 63) - 1
    )
    if out.device.type == "cpu":
        out.normal_(generator=generator)
        return
    drawn = scratch.get("drawn", out.dtype, slot.size)
    out.copy_(drawn.normal_(generator=generator))


def _make_orthogonal(rows: Tensor, others: Tensor) -> None:
    """Take out of every row what lies along the other's; a row of one entry becomes 0."""
    if rows.shape[1] == 1:
        rows.zero_()
        return
    along = (rows * others).sum(1, keepdim=True) / others.square().sum(1, keepdim=True)
    rows.sub_(along * others)


def random_directions(
    origin: Weights, slots: Sequence[Slot], count: int, seed: int, normalize: str, mapper: Mapper
) -> list[RandomDirection]:
    """One or two random directions (see `RandomDirection`); for `model`, after one pass over the
    weights for their norm.

    Raises:
        DeltaLensError: no such normalization.
    """
    if normalize not in NORMALIZATIONS:
        raise DeltaLensError(f"normalize {normalize!r}: choose {', '.join(NORMALIZATIONS)}")
    sums = None
    if normalize == "model":
        scratch = Scratch()

        def inner(slot: Slot) -> tuple[float, float, float, float]:
            first, second, weights = (
                scratch.get(name, slot.work, slot.size) for name in ("one", "two", "weights")
            )
            _draw(slot, seed, 0, first, scratch)
            _draw(slot, seed, 1, second, scratch)
            origin.read(slot.name, 0, weights)
            pairs = ((weights, weights), (first, first), (second, second), (first, second))
            found = [float((x.double() * y.double()).sum()) for x, y in pairs]
            return found[0], found[1], found[2], found[3]

        parts = list(mapper(inner, slots))
        sums = _Sums(*(math.fsum(part[place] for part in parts) for place in range(4)))
    return [RandomDirection(origin, seed, place, normalize, sums) for place in range(count)]
