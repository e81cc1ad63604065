"""The specification of a salience study, and the points that it is measured at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from deltalens.catalog.salience import SALIENCE_METRICS, Expectation
from deltalens.io.records import Setting, Union
from deltalens.methods.salience import HessianWay, Targets
from deltalens.names import Scope
from deltalens.numerics.rates import show_rate
from deltalens.studies import axes

__all__ = ["ALL", "CHANGES", "GROWS", "HALVES", "SAMPLES", "SalienceSpec", "in_catalog_order"]

ALL = "all"
"""What a metric's whole budget is recorded under."""
SAMPLES: Mapping[str, Fraction] = {
    "1/8": Fraction(1, 8),
    "1/4": Fraction(1, 4),
    "1/2": Fraction(1, 2),
}
"""Shares of the calibration batches whose masks are compared with those of all."""
HALVES = "halves"
"""Two halves of the calibration batches, compared with each other."""
CHANGES = "largest changes"
"""The weights that a fine-tune changed most."""
GROWS: dict[str, Union] = {
    "salience": axes.names([*SALIENCE_METRICS]),
    # A fine-tune may be added, and left out later; not exchanged.
    "against": lambda recorded, requested: (
        None if recorded and requested and recorded != requested else recorded or requested
    ),
}
"""The axes along which a salience study can grow -> how their values are merged."""


@dataclass(frozen=True, kw_only=True)
class SalienceSpec:
    """The specification of a salience study."""

    metrics: tuple[str, ...]
    """Salience metrics, in the catalog's order."""
    density: Fraction
    """The fraction of each ranked unit that a mask keeps."""
    scope: Scope
    targets: Targets
    steps: int
    """The number of calibration batches."""
    batch_size: int
    max_length: int | None
    expectation: Expectation
    sign: int
    hessian: HessianWay
    seed: int
    """Of the rows' order, the hash that breaks ties, and `random`."""
    against: bool
    """Whether the masks are compared with what a fine-tune changed most."""

    def grown(self, recorded: Mapping[str, Any]) -> SalienceSpec:
        """Extend the metrics to those of the study that this specification is now part of.

        Args:
            recorded: the study's specification, as JSON values.

        Returns:
            The same specification with the study's metrics.
        """
        return replace(self, metrics=tuple(recorded["salience"]))

    def identity(self) -> dict[str, Any]:
        """Collect everything in the specification that decides the numbers.

        Returns:
            JSON values by name.
        """
        targets = self.targets if isinstance(self.targets, str) else ",".join(self.targets)
        return {
            "salience": list(self.metrics),
            "density": show_rate(self.density),
            "scope": self.scope,
            "targets": targets,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "expectation": self.expectation,
            "sign": self.sign,
            "hessian": self.hessian,
            "seed": self.seed,
        }

    @property
    def with_data(self) -> list[str]:
        """The metrics that see calibration data."""
        return [name for name in self.metrics if not SALIENCE_METRICS[name].data_free]

    def samples(self, batches: int) -> list[str]:
        """List the parts of the calibration data whose masks are compared.

        Args:
            batches: the number of calibration batches.

        Returns:
            Shares of which at least one batch is left, and the two halves.
        """
        shares = [name for name, share in SAMPLES.items() if int(share * batches)]
        return [*shares, HALVES] if batches > 1 else shares

    def points(self, batches: int) -> list[Setting]:
        """List all points: masks first, which the others compare.

        Args:
            batches: the number of calibration batches.

        Returns:
            Their settings; a point of part `budget` has a cell for every kind of layer.
        """
        points: list[Setting] = [_point(name, "budget", ALL) for name in self.metrics]
        for sample in self.samples(batches):
            points += [_point(name, "sample", sample) for name in self.with_data]
        points += [
            _point(one, "agreement", other)
            for index, one in enumerate(self.metrics)
            for other in self.metrics[index + 1 :]
        ]
        if self.against:
            points += [_point(name, "fine-tune", CHANGES) for name in self.metrics]
        return points


def _point(metric: str, part: str, of: str) -> Setting:
    return {"salience": metric, "part": part, "of": of}


def in_catalog_order(metrics: Sequence[str]) -> tuple[str, ...]:
    """Sort metrics as the catalog does.

    Args:
        metrics: their names.

    Returns:
        Each once.
    """
    return tuple(axes.in_order(metrics, [*SALIENCE_METRICS]))
