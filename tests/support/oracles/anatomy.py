"""The slow twin of `inspect`: sorts and loops over exact numbers.

Written from docs/methods.md. Nothing here imports deltalens.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch

from tests.support.oracles.order import (
    BF16,
    FORMATS,
    FP32,
    convert,
    delta_magnitudes,
    number,
    raw_bits,
)


@dataclass(frozen=True)
class Anatomy:
    """What a tensor's delta looks like, every figure from the sorted list of its sizes."""

    sizes: list[float]
    """|delta|, ascending."""
    unchanged: int
    squared_norm: float
    base_squared_norm: float
    fourth: float
    vanishing: int
    """Changed entries for which both models are one number once cast to bf16."""

    @property
    def n(self) -> int:
        return len(self.sizes)

    @property
    def changed(self) -> int:
        return self.n - self.unchanged

    def quantile(self, share: float) -> float:
        """The size at the rank nearest to share * (n - 1): numpy's method "nearest"."""
        return self.sizes[round(share * (self.n - 1))]

    def energy(self, share: float) -> float:
        """The share of the squared norm in the largest `share` of the entries, in between linear.

        A largest share that is no whole number of entries takes a part of the next one.
        """
        if not self.squared_norm:
            return math.nan
        want = float(Fraction(share).limit_denominator(10**6) * self.n)
        terms = []
        for at, size in enumerate(reversed(self.sizes)):
            part = min(1.0, want - at)
            if part <= 0:
                break
            terms.append(part * size * size)
        return math.fsum(terms) / self.squared_norm

    @property
    def kurtosis(self) -> float:
        """E d^4 / (E d^2)^2, about zero."""
        if not self.squared_norm:
            return math.nan
        return self.n * self.fourth / self.squared_norm**2

    @property
    def norm(self) -> float:
        return math.sqrt(self.squared_norm)

    @property
    def relative_norm(self) -> float:
        return self.norm / math.sqrt(self.base_squared_norm)


def anatomy(ft: torch.Tensor, base: torch.Tensor) -> Anatomy:
    """The figures of one finite pair."""
    sizes = [float(number(bits, FP32)) for bits in delta_magnitudes(ft, base)]
    base_values = [float(number(bits, FORMATS[base.dtype])) for bits in raw_bits(base)]
    vanishing = 0
    for one, other, size in zip(raw_bits(ft), raw_bits(base), sizes, strict=True):
        a = convert(one, FORMATS[ft.dtype], BF16)
        b = convert(other, FORMATS[base.dtype], BF16)
        # As numbers: +0 and -0 are one.
        same = a == b or (a | b) == 1 << 15
        vanishing += size > 0 and same
    return Anatomy(
        sizes=sorted(sizes),
        unchanged=sum(size == 0 for size in sizes),
        squared_norm=math.fsum(size * size for size in sizes),
        base_squared_norm=math.fsum(value * value for value in base_values),
        fourth=math.fsum(size**4 for size in sizes),
        vanishing=vanishing,
    )
