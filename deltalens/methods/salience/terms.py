"""What is accumulated of gradients over batches, and the scores that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from deltalens.methods.salience.calibration import accumulator

__all__ = ["TERMS", "Term", "Terms"]

Term = Literal["mean", "size", "square"]
"""The mean over batches of a gradient, of its magnitude, or of its square."""

TERMS: Mapping[tuple[str, str], Term] = {
    ("gradient", "inside"): "mean",
    ("snip", "inside"): "mean",
    ("force", "inside"): "mean",
    ("taylor-fo", "inside"): "mean",
    ("gradient", "outside"): "size",
    ("snip", "outside"): "size",
    ("force", "outside"): "mean",
    ("taylor-fo", "outside"): "square",
}
"""(metric, expectation) -> the term it is made of. The weight does not change from batch to batch,
so that it comes out of every expectation: E|g * theta| = E|g| * |theta|."""

_SCORES: Mapping[str, Callable[[Tensor, Tensor, Term], Tensor]] = {
    "gradient": lambda term, weight, kind: term.abs(),
    "snip": lambda term, weight, kind: (term * weight).abs_(),
    "force": lambda term, weight, kind: (term * weight).neg_(),
    "taylor-fo": lambda term, weight, kind: (
        term * weight * weight if kind == "square" else (term * weight).square_()
    ),
}


class Terms:
    """Accumulates terms of the gradients of some weights.

    Args:
        weights: weight name -> weight.
        kinds: the terms.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], kinds: Sequence[Term]) -> None:
        self._weights = weights
        self._sums = {
            kind: {name: accumulator(weight) for name, weight in weights.items()} for kind in kinds
        }

    def take(self, name: str, gradient: Tensor) -> None:
        """Add the gradient of a weight on a batch.

        Args:
            name: the weight's name.
            gradient: the gradient.
        """
        if "mean" in self._sums:
            self._sums["mean"][name].add_(gradient)
        if "size" in self._sums:
            self._sums["size"][name].add_(gradient.abs())
        if "square" in self._sums:
            total = self._sums["square"][name]
            wide = gradient.to(total.dtype)
            total.addcmul_(wide, wide)

    def means(self, kind: Term, batches: int) -> dict[str, Tensor]:
        """Compute a term; once, at the end.

        Args:
            kind: the term.
            batches: the number of batches.

        Returns:
            Weight name -> the mean over batches, of its shape.
        """
        for total in self._sums[kind].values():
            total /= batches
        return self._sums[kind]

    def scores(self, metric: str, expectation: str, last: bool) -> dict[str, Tensor]:
        """Compute the scores of a metric of the first order from means.

        Args:
            metric: `gradient`, `snip`, `force` or `taylor-fo`.
            expectation: `inside` or `outside`.
            last: whether the term is not needed afterwards; its memory is then given back.

        Returns:
            Weight name -> scores of its shape.
        """
        kind = TERMS[metric, expectation]
        terms, scores = self._sums[kind], {}
        with torch.no_grad():
            for name, weight in self._weights.items():
                term = terms.pop(name) if last else terms[name]
                scores[name] = _SCORES[metric](term, weight.to(term.dtype), kind)
        return scores
