"""Means over examples, with their standard errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltalens.io.records import Measurement

__all__ = ["correlation", "f1_score", "mean", "ratio"]


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


def f1_score(predicted: Tensor, actual: Tensor, classes: int) -> Measurement:
    """Compute F1: of class 1 if there are two classes, else the plain mean over all classes (macro)
    that occur among the labels or the predictions.

    F1 of a class is 2 TP / (2 TP + FP + FN), a ratio of two sums over rows; 0 if that is 0 / 0.

    Args:
        predicted, actual: (n,), the number of each row's class.
        classes: how many there are.

    Returns:
        F1 in [0, 1], with the linearized standard error over rows.
    """
    numbers = torch.arange(classes)[None, :]
    said, true = predicted[:, None] == numbers, actual[:, None] == numbers
    if classes == 2:
        said, true = said[:, 1:], true[:, 1:]
    top, bottom = 2 * (said & true).double(), said.double() + true.double()
    total, n = bottom.sum(0), predicted.numel()
    occurs = total > 0
    if not bool(occurs.any()):
        return Measurement(0.0, 0.0 if n > 1 else math.nan, n)
    top, bottom, total = top[:, occurs], bottom[:, occurs], total[occurs]
    scores = top.sum(0) / total
    if n < 2:
        return Measurement(float(scores.mean()), math.nan, n)
    residual = ((top - scores * bottom) / total).mean(1)
    return Measurement(
        float(scores.mean()), math.sqrt(n / (n - 1) * float(residual.pow(2).sum())), n
    )


def correlation(first: Tensor, second: Tensor) -> Measurement:
    """Compute Pearson's correlation coefficient r of two numbers per example.

    Args:
        first, second: (n,).

    Returns:
        r, with the linearized standard error: that of the mean of x y - r (x^2 + y^2) / 2 over
        examples, x and y in standard deviations from their means. 0 if either number is the same in
        all examples: they say nothing about each other.
    """
    n = first.numel()
    x, y = (values.double() - values.double().mean() for values in (first, second))
    spread = [float(values.pow(2).mean().sqrt()) for values in (x, y)]
    if 0.0 in spread:
        return Measurement(0.0, math.nan, n)
    x, y = x / spread[0], y / spread[1]
    r = float((x * y).mean())
    influence = x * y - r * (x.pow(2) + y.pow(2)) / 2
    return Measurement(max(-1.0, min(1.0, r)) if r == r else r, mean(influence).stderr, n)
