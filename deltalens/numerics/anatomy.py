"""The shape of a delta from counts of its magnitudes: quantiles, tail, and where the energy is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deltalens.numerics.selection import Counts

__all__ = ["Anatomy", "anatomy_of", "octave_counts"]

QUANTILES = (0.5, 0.9, 0.99, 0.999)
"""Fractions of the entries at which the magnitude is reported."""
TOPS = (0.01, 0.1, 0.5)
"""Fractions of the largest entries whose share of the energy is reported."""


@dataclass(frozen=True)
class Anatomy:
    """The shape of a distribution of magnitudes, accurate to the width of a bin (at most 0.8 %)."""

    quantiles: dict[float, float]
    """Fraction -> magnitude, over all entries, zeros included."""
    tail: float
    """Kurtosis about zero, E x^4 / (E x^2)^2: 3 for a normal distribution, more for heavier
    tails."""
    energy: dict[float, float]
    """Fraction t -> share of the sum of squares that lies in the largest t of the entries."""


def anatomy_of(counts: Counts) -> Anatomy:
    """Compute the anatomy of a tensor from its counts.

    Args:
        counts: counts of its magnitudes.

    Returns:
        The anatomy; NaN for tail and energy if every entry is zero.
    """
    bin_counts = counts.counts.double().cpu()[: len(counts.edges()) - 1]
    centers = _bin_centers(counts)
    total, squares = float(bin_counts.sum()), bin_counts * centers.pow(2)
    energy = float(squares.sum())
    quantiles = dict(zip(QUANTILES, counts.quantile(list(QUANTILES)), strict=True))
    if energy == 0 or not math.isfinite(energy):
        return Anatomy(quantiles, math.nan, dict.fromkeys(TOPS, math.nan))
    fourth_moment = float((squares / energy * centers.pow(2)).sum())
    largest_first = torch.cumsum(bin_counts.flip(0), 0)
    energy_of_largest = torch.cumsum(squares.flip(0), 0) / energy
    shares = {top: _share_at(largest_first, energy_of_largest, top * total) for top in TOPS}
    return Anatomy(quantiles, fourth_moment * total / energy, shares)


def _bin_centers(counts: Counts) -> torch.Tensor:
    """The center of each finite bin but the last; 0 for the first, which holds the zeros."""
    edges = counts.edges()
    centers = (edges[:-1] + edges[1:]) / 2 if counts.coarse else edges[:-1].clone()
    centers[0] = 0.0
    return centers


def _share_at(cumulative: torch.Tensor, cumulative_shares: torch.Tensor, target: float) -> float:
    """The cumulative share at a cumulative count, interpolated linearly within the bin."""
    index = int(torch.searchsorted(cumulative, target))
    if index >= len(cumulative):
        return 1.0
    count_before = float(cumulative[index - 1]) if index else 0.0
    share_before = float(cumulative_shares[index - 1]) if index else 0.0
    fraction = (target - count_before) / max(1.0, float(cumulative[index]) - count_before)
    return share_before + fraction * (float(cumulative_shares[index]) - share_before)


def octave_counts(counts: Counts, per_octave: int = 4) -> dict[int, int]:
    """Merge counts into parts of an octave.

    Args:
        counts: counts of magnitudes.
        per_octave: number of parts per octave.

    Returns:
        floor(per_octave * log2 |x|) -> number of entries; zeros are left out.
    """
    edges = counts.edges()
    bin_counts = counts.counts.cpu()[: len(edges)]
    occupied = ((bin_counts > 0) & (edges > 0)).nonzero().squeeze(1)
    bins = torch.floor(per_octave * torch.log2(edges[occupied]) + 1e-9)
    merged: dict[int, int] = {}
    for bin_, count in zip(bins.tolist(), bin_counts[occupied].tolist(), strict=True):
        merged[int(bin_)] = merged.get(int(bin_), 0) + count
    return merged
