"""What a drop study was asked for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
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
"""The strategy of the cell that is the base's own model."""
GROWS: dict[str, Union] = {
    "strategies": axes.named(STRATEGIES),
    "rates": axes.rates,
    "seeds": axes.largest,
}
"""The axes of a drop study."""


@dataclass(frozen=True, kw_only=True)
class DropSpec:
    """A drop study's arguments, checked."""

    suite: Suite
    strategies: tuple[str, ...]
    rates: tuple[Fraction, ...]
    scope: Scope
    seeds: int
    rescale: bool
    changed_only: bool
    include: str | None
    exclude: str | None

    def grown(self, spec: Mapping[str, Any]) -> DropSpec:
        """The same with all of the axes of the study that it becomes a part of."""
        return replace(
            self,
            strategies=tuple(spec["strategies"]),
            rates=tuple(map(Fraction, spec["rates"])),
            seeds=spec["seeds"],
        )

    def cells(self, unpaired: bool) -> list[Setting]:
        """All cells: the strategies in turn, rates ascending; seeds for the random one.

        Args:
            unpaired: tensors are on one side only: rate 1 is not the base, which is a cell itself.
        """
        return [
            {"strategy": strategy, "scope": self.scope, "rate": float(rate), "seed": seed}
            for strategy in self.strategies
            for seed in range(self.seeds if strategy == "random" else 1)
            for rate in self.rates
        ] + [{"strategy": BASE, "scope": self.scope, "rate": 1.0, "seed": 0}] * unpaired

    def drop_settings(self) -> list[DropSetting]:
        """What is selected for: every cell but the fine-tune and the base themselves."""
        return [
            DropSetting(check_strategy(strategy), rate, seed)
            for strategy in self.strategies
            for seed in range(self.seeds if strategy == "random" else 1)
            for rate in self.rates
            if 0 < rate < 1 or (rate == 1 and self.changed_only)
        ]

    def identity(self) -> dict[str, Any]:
        """What of it decides the numbers, as JSON values."""
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
