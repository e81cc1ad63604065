"""What counts of magnitudes tell about a delta: quantiles, tail, and where the energy is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deltalens.numerics.selection import Counts

__all__ = ["Anatomy", "anatomy_of", "octave_counts"]

QUANTILES = (0.5, 0.9, 0.99, 0.999)
TOPS = (0.01, 0.1, 0.5)


@dataclass(frozen=True)
class Anatomy:
    """The shape of a distribution of magnitudes, to the width of a bin (at most 0.8 %)."""

    quantiles: dict[float, float]
    """Fraction -> magnitude, over all entries, zeros included."""
    tail: float
    """Kurtosis about zero, E x^4 / (E x^2)^2: 3 for a normal distribution, more for heavier
    tails."""
    energy: dict[float, float]
    """Fraction t -> share of the sum of squares in the largest t of the entries."""


def anatomy_of(found: Counts) -> Anatomy:
    """The anatomy of what was counted; NaN where nothing differs from zero."""
    counts = found.counts.double().cpu()[: len(found.edges()) - 1]
    middles = _middles(found)
    total, squares = float(counts.sum()), counts * middles.pow(2)
    energy = float(squares.sum())
    quantiles = dict(zip(QUANTILES, found.quantile(list(QUANTILES)), strict=True))
    if energy == 0 or not math.isfinite(energy):
        return Anatomy(quantiles, math.nan, dict.fromkeys(TOPS, math.nan))
    fourth = float((squares / energy * middles.pow(2)).sum())
    above = torch.cumsum(counts.flip(0), 0)
    energy_above = torch.cumsum(squares.flip(0), 0) / energy
    shares = {top: _at(above, energy_above, top * total) for top in TOPS}
    return Anatomy(quantiles, fourth * total / energy, shares)


def _middles(found: Counts) -> torch.Tensor:
    """The middle of each finite bin but the last; the first bin holds the zeros: 0."""
    edges = found.edges()
    middles = (edges[:-1] + edges[1:]) / 2 if found.coarse else edges[:-1].clone()
    middles[0] = 0.0
    return middles


def _at(counts: torch.Tensor, shares: torch.Tensor, wanted: float) -> float:
    """The share at a count, linear within the bin."""
    place = int(torch.searchsorted(counts, wanted))
    if place >= len(counts):
        return 1.0
    before = float(counts[place - 1]) if place else 0.0
    low = float(shares[place - 1]) if place else 0.0
    inside = (wanted - before) / max(1.0, float(counts[place]) - before)
    return low + inside * (float(shares[place]) - low)


def octave_counts(counted: Counts, per_octave: int = 4) -> dict[int, int]:
    """Counts by parts of an octave: floor(per_octave * log2|x|) -> entries; zeros are left out."""
    edges = counted.edges()
    counts = counted.counts.cpu()[: len(edges)]
    occupied = ((counts > 0) & (edges > 0)).nonzero().squeeze(1)
    places = torch.floor(per_octave * torch.log2(edges[occupied]) + 1e-9)
    found: dict[int, int] = {}
    for place, count in zip(places.tolist(), counts[occupied].tolist(), strict=True):
        found[int(place)] = found.get(int(place), 0) + count
    return found
