"""What a salience metric found: a score per weight, and the highest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import get_args

import torch
from torch import Tensor

from deltalens.errors import DeltaLensError, fault_list
from deltalens.names import Scope, check_scope, unit_of
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.rates import Rate, exact_rate, show_rate
from deltalens.numerics.selection import Ties, keep_top

__all__ = ["Salience"]


@dataclass(frozen=True, eq=False)
class Salience:
    """How much each weight matters, by one metric; `deltalens.salience` measures it.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 20))
        >>> found = deltalens.salience(model, [], "magnitude", targets=["0"])
        >>> found
        Salience(metric='magnitude', signed=False, steps=0, examples=0, notes=())
        >>> {name: len(kept) for name, kept in found.indices(0.1).items()}
        {'0.weight': 20}
    """

    metric: str
    """The metric's name."""
    scores: Mapping[str, Tensor] = field(repr=False)
    """Parameter name -> scores of the weight's shape: fp32, or fp64 if the weight is."""
    signed: bool
    """Whether signed values are ranked; otherwise magnitudes are."""
    steps: int
    """The number of calibration batches that were used; 0: none."""
    examples: int
    """The number of examples in those batches."""
    notes: tuple[str, ...] = ()
    """What is worth knowing about the measurement, in sentences."""

    @property
    def entries(self) -> int:
        """The number of weights scored."""
        return sum(scores.numel() for scores in self.scores.values())

    def masks(
        self,
        density: Rate | None = None,
        *,
        count: int | None = None,
        scope: Scope = "global",
        seed: int = 0,
        ties: Ties = "hash",
    ) -> dict[str, PackedMask]:
        """Mask the highest scores (SPEFT, Eq. 2 and 3).

        Args:
            density: the fraction of each ranked unit that is kept, in (0, 1]; a unit of n weights
                keeps round(density * n), half to even, of the exact decimal.
            count: instead, the number of weights kept in all; units share it in proportion to their
                sizes, to the last one.
            scope: what is ranked together: `global`, `layer` (one transformer block) or `tensor`
                (the paper's local masks).
            seed: seed of the hash that breaks ties.
            ties: `hash` keeps exactly that many; `keep` keeps all that tie with the last,
                as Eq. 2 has it.

        Returns:
            Parameter name -> mask over the flat weight.

        Raises:
            DeltaLensError: not exactly one of density and count is given, it is out of bounds or
                leaves a unit with no weight, or a score is NaN.
        """
        if ties not in get_args(Ties):
            raise DeltaLensError(f"ties={ties!r}: choose hash or keep")
        units: dict[str, dict[str, Tensor]] = {}
        for name, scores in self.scores.items():
            unit = unit_of(name, check_scope(scope))
            units.setdefault(unit, {})[name] = scores.contiguous().view(-1)
        sizes = {unit: sum(map(torch.numel, part.values())) for unit, part in units.items()}
        counts = _counts(sizes, density, count)
        masks: dict[str, PackedMask] = {}
        for unit, tensors in units.items():
            masks |= keep_top(tensors, counts[unit], by_value=self.signed, seed=seed, ties=ties)
        return {name: masks[name] for name in self.scores}

    def indices(
        self,
        density: Rate | None = None,
        *,
        count: int | None = None,
        scope: Scope = "global",
        seed: int = 0,
        ties: Ties = "hash",
    ) -> dict[str, Tensor]:
        """Find the highest scores.

        Args:
            density: as in `masks`.
            count: as in `masks`.
            scope: as in `masks`.
            seed: as in `masks`.
            ties: as in `masks`.

        Returns:
            Parameter name -> flat indices, int64, ascending, on the scores' device.

        Raises:
            DeltaLensError: as in `masks`.
        """
        masks = self.masks(density, count=count, scope=scope, seed=seed, ties=ties)
        return {name: mask.unpacked().nonzero().view(-1) for name, mask in masks.items()}


def _counts(sizes: Mapping[str, int], density: Rate | None, count: int | None) -> dict[str, int]:
    """How many entries each unit keeps."""
    if (density is None) == (count is None):
        raise DeltaLensError("give either density or count: how many weights are kept")
    total = sum(sizes.values())
    if density is not None:
        exact = exact_rate(density, "density")
        if exact == 0:
            raise DeltaLensError(f"density {density} is outside (0, 1]")
        counts = {unit: round(exact * size) for unit, size in sizes.items()}
        given = f"density {show_rate(exact)}"
    else:
        if type(count) is not int or not 0 < count <= total:
            raise DeltaLensError(f"count {count}: must be from 1 to {total:,}, the weights scored")
        counts = _shares(sizes, count)
        given = f"count {count}"
    if empty := [f"{unit}: {sizes[unit]:,} weights" for unit in sizes if not counts[unit]]:
        raise DeltaLensError(
            fault_list(f"{given} leaves no weight of these units; raise it, or rank more:", empty)
        )
    return counts


def _shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Divide a count in proportion to sizes, by largest remainders; the first unit wins a tie."""
    total = sum(sizes.values())
    exact = {unit: Fraction(count * size, total) for unit, size in sizes.items()}
    shares = {unit: int(share) for unit, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda unit: shares[unit] - exact[unit])
    for unit in by_remainder[: count - sum(shares.values())]:
        shares[unit] += 1
    return shares
