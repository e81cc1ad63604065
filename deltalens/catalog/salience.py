"""The salience metrics: how each is called, what it computes, and what it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from deltalens.errors import DeltaLensError

__all__ = [
    "EXPECTATIONS",
    "SALIENCE_METRICS",
    "Expectation",
    "SalienceFacts",
    "SalienceMetric",
    "check_metrics",
]

SalienceMetric = Literal[
    "magnitude",
    "gradient",
    "snip",
    "force",
    "taylor-fo",
    "synflow",
    "grasp",
    "fisher",
    "random",
]
"""A name of a salience metric."""
Expectation = Literal["inside", "outside"]
"""Whether a metric is taken of the mean gradient, or the mean is taken of the metric."""
EXPECTATIONS: tuple[Expectation, ...] = get_args(Expectation)


@dataclass(frozen=True, kw_only=True)
class SalienceFacts:
    """What is known of a salience metric."""

    label: str
    """What it is called in pictures and tables."""
    printed: str
    """What SPEFT's paper calls it; empty if it is not in the paper."""
    formula: str
    """What it computes, with the expectation inside; theta is the weight, g the gradient."""
    color: str
    """Its color in pictures."""
    order: Literal[0, 1, 2]
    """The order of the derivatives of the loss that it takes; 0: it sees no data."""
    signed: bool = False
    """Whether signed values are ranked; otherwise magnitudes are."""
    outside: bool = True
    """Whether the mean may be taken of the metric, over batches, instead of the gradient."""

    @property
    def data_free(self) -> bool:
        """Whether it needs no calibration data."""
        return self.order == 0


# Okabe and Ito's palette and two of its tints; the order is the paper's.
SALIENCE_METRICS: Mapping[str, SalienceFacts] = {
    "magnitude": SalienceFacts(
        label="magnitude",
        printed="Magnitude",
        formula="|theta|",
        color="#999999",
        order=0,
        outside=False,
    ),
    "gradient": SalienceFacts(
        label="gradient", printed="Gradient", formula="|E g|", color="#D55E00", order=1
    ),
    "snip": SalienceFacts(
        label="SNIP", printed="SNIP", formula="|E g * theta|", color="#0072B2", order=1
    ),
    "force": SalienceFacts(
        label="FORCE",
        printed="FORCE",
        formula="-E g * theta",
        color="#56B4E9",
        order=1,
        signed=True,
    ),
    "taylor-fo": SalienceFacts(
        label="Taylor-FO", printed="Taylor-FO", formula="(E g * theta)^2", color="#CC79A7", order=1
    ),
    "synflow": SalienceFacts(
        label="SynFlow",
        printed="SynFlow",
        formula="|dR/dtheta * theta|, R the sum of outputs of the linear network of |theta|",
        color="#F0E442",
        order=0,
        outside=False,
    ),
    "grasp": SalienceFacts(
        label="GRaSP",
        printed="GRaSP",
        formula="-(H E g) * theta",
        color="#009E73",
        order=2,
        signed=True,
    ),
    "fisher": SalienceFacts(
        label="Fisher", printed="Fisher-Info", formula="E g^2", color="#E69F00", order=2
    ),
    "random": SalienceFacts(
        label="random", printed="", formula="a hash", color="black", order=0, outside=False
    ),
}
"""Metric -> its facts."""


def check_metrics(metrics: str | Iterable[str]) -> list[SalienceMetric]:
    """Check the names of metrics.

    Args:
        metrics: names, separated by commas or as a sequence; `all` stands for every one.

    Returns:
        The distinct names, in the order given.

    Raises:
        DeltaLensError: a name is unknown, or there is none.
    """
    names = metrics.split(",") if isinstance(metrics, str) else [str(name) for name in metrics]
    names = [name.strip() for name in names if name.strip()]
    if "all" in names:
        names = [*SALIENCE_METRICS]
    if unknown := [name for name in names if name not in SALIENCE_METRICS]:
        raise DeltaLensError(
            f"no salience metric {', '.join(map(repr, unknown))}: choose from "
            f"{', '.join(SALIENCE_METRICS)}, or all"
        )
    if not names:
        raise DeltaLensError(
            f"no salience metric given: choose from {', '.join(SALIENCE_METRICS)}, or all"
        )
    return [*dict.fromkeys(names)]  # type: ignore[list-item]
