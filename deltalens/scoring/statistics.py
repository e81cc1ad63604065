"""Means over examples, with their standard errors."""

from __future__ import annotations

import math

from torch import Tensor

from deltalens.io.records import Measurement

__all__ = ["mean", "ratio"]


def mean(values: Tensor) -> Measurement:
    """Average one number per example.

    Args:
        values: (n,).

    Returns:
        The mean, with the standard error s / sqrt(n); NaN for no examples.
    """
    n = values.numel()
    wide = values.double()
    if n < 2:
        return Measurement(float(wide.mean()) if n else math.nan, math.nan, n)
    return Measurement(float(wide.mean()), float(wide.std() / math.sqrt(n)), n)


def ratio(sums: Tensor, weights: Tensor) -> Measurement:
    """Compute sum(sums) / sum(weights), as in a loss per token over examples of different lengths.

    Args:
        sums: (n,), one sum per example.
        weights: (n,), the weight of each example.

    Returns:
        The ratio, with the linearized standard error of a ratio of two means over examples.
    """
    top, bottom = sums.double(), weights.double()
    n, total = top.numel(), float(bottom.sum())
    if total == 0:
        return Measurement(math.nan, math.nan, n)
    value = float(top.sum()) / total
    if n < 2:
        return Measurement(value, math.nan, n)
    residual = (top - value * bottom).pow(2).sum()
    return Measurement(value, math.sqrt(n / (n - 1) * float(residual)) / total, n)
