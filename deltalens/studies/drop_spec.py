"""The specification of a drop study: its arguments, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from deltalens.io.records import Setting, Union
from deltalens.names import Scope
from deltalens.numerics.rates import show_rate
from deltalens.numerics.selection import STRATEGIES
from deltalens.scoring.suite import Suite
from deltalens.studies import axes
from deltalens.studies.selecting import DropSetting, check_strategy

__all__ = ["BASE", "GROWS", "DropSpec"]

BASE = "base"
"""The strategy of the cell in which the base itself is measured."""
GROWS: dict[str, Union] = {
    "strategies": axes.names(STRATEGIES),
    "rates": axes.rates,
    "seeds": axes.largest,
}
"""The axes along which a drop study can grow -> how their values are merged."""


@dataclass(frozen=True, kw_only=True)
class DropSpec:
    """The specification of a drop study."""

    suite: Suite
    """What is measured in each cell."""
    strategies: tuple[str, ...]
    rates: tuple[Fraction, ...]
    """Drop rates, ascending; 0 and 1 are always among them."""
    scope: Scope
    seeds: int
    """Number of random orders."""
    rescale: bool
    """Divide the deltas that are kept by 1 - rate (DARE)."""
    changed_only: bool
    """Apply rates to the entries whose delta is not 0."""
    include: str | None
    exclude: str | None

    def grown(self, recorded: Mapping[str, Any]) -> DropSpec:
        """Extend the axes to those of the study that this specification is now part of.

        Args:
            recorded: the study's specification, as JSON values.

        Returns:
            The same specification with the study's strategies, rates and seeds.
        """
        return replace(
            self,
            strategies=tuple(recorded["strategies"]),
            rates=tuple(map(Fraction, recorded["rates"])),
            seeds=recorded["seeds"],
        )

    def cells(self, unpaired: bool) -> list[Setting]:
        """List all cells: by strategy, then by seed (`random` only), then by ascending rate.

        Args:
            unpaired: whether some tensors exist in one model only. The model at rate 1 is then not
                the base, and the base gets a cell of its own.

        Returns:
            The settings of the cells, in the order of the table.
        """
        cells: list[Setting] = [
            {"strategy": strategy, "scope": self.scope, "rate": float(rate), "seed": seed}
            for strategy, rate, seed in self._points()
        ]
        if unpaired:
            cells.append({"strategy": BASE, "scope": self.scope, "rate": 1.0, "seed": 0})
        return cells

    def drop_settings(self) -> list[DropSetting]:
        """List the drops that need a selection: all but the unchanged fine-tune and the base.

        Returns:
            The drops, in the order of the table.
        """
        return [
            DropSetting(check_strategy(strategy), rate, seed)
            for strategy, rate, seed in self._points()
            if 0 < rate < 1 or (rate == 1 and self.changed_only)
        ]

    def identity(self) -> dict[str, Any]:
        """Collect everything in the specification that decides the numbers.

        Returns:
            JSON values by name.
        """
        return {
            "strategies": list(self.strategies),
            "rates": [show_rate(rate) for rate in self.rates],
            "scope": self.scope,
            "seeds": self.seeds,
            "rescale": self.rescale,
            "changed_only": self.changed_only,
            "include": self.include,
            "exclude": self.exclude,
            **self.suite.identity(),
        }

    def _points(self) -> Iterator[tuple[str, Fraction, int]]:
        """Strategy, rate and seed of every cell but the base's."""
        for strategy in self.strategies:
            for seed in range(self.seeds if strategy == "random" else 1):
                for rate in self.rates:
                    yield strategy, rate, seed
