"""What is measured: in which unit, which way is better, and what may be said of it."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from deltalens.catalog.plugins import find
from deltalens.errors import DeltaLensError

__all__ = [
    "DIRECTIONS",
    "HIGHER",
    "METRICS",
    "Better",
    "Metric",
    "axis_label",
    "better_of",
    "check_better",
    "compares_as_ratio",
    "gain",
    "is_lower_better",
    "is_shown",
    "is_worse",
    "known_metric",
    "leading",
    "no_direction",
    "scale_of",
    "short_name",
]

Better = Literal["higher", "lower"]
"""Which values of a metric are the better ones."""
DIRECTIONS: tuple[Better, ...] = get_args(Better)
HIGHER: Better = "higher"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is known of a metric that deltalens measures."""

    label: str
    """In a picture; `{}` stands for the model that it is measured against."""
    better: Better
    unit: str = ""
    ratio: bool = True
    """Whether one value over another says something: not of a margin, whose zero is arbitrary."""
    per_cent: bool = False
    """A fraction in the records; pictures and the papers' tables show per cent."""
    leads: bool = False
    """A summary may speak of it first."""
    shown: bool = True
    """Has a column or a panel of its own where trainings are compared."""


# The order is the one in which a summary takes its leading metric.
METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(label="exact match", better="higher", per_cent=True, leads=True),
    "top1_agreement": Metric(
        label="top-1 agreement with {}", better="higher", per_cent=True, leads=True
    ),
    "loss": Metric(label="loss", better="lower", unit="nats per target token", leads=True),
    "kl": Metric(label="KL({} ‖ model)", better="lower", unit="nats per token"),
    # Under DPO, against the model that a training starts from.
    "preference_accuracy": Metric(
        label="preference accuracy", better="higher", per_cent=True, leads=True
    ),
    "dpo_loss": Metric(label="DPO loss", better="lower", unit="nats per preference"),
    "reward_margin": Metric(label="reward margin", better="higher", unit="nats", ratio=False),
    # Beside the loss it says nothing more.
    "perplexity": Metric(label="perplexity", better="lower", shown=False),
    # Of the rows that are trained on, with whatever the method does to the model. Which loss it is,
    # and in which unit, a study's own facts say.
    "training_loss": Metric(label="training loss", better="lower", shown=False),
}
"""Every metric of deltalens' own, by its name in the records."""


def short_name(metric: str) -> str:
    """A metric's own name: without its data (`FILE/metric`) and its step (`metric@100`)."""
    return metric.rpartition("/")[2].partition("@")[0]


def known_metric(metric: str) -> Metric | None:
    """What is known of a metric, ours or an installed package's; None for one of the caller's."""
    name = short_name(metric)
    return METRICS.get(name) or _of_package(name, tuple(sys.path))


@functools.lru_cache(maxsize=256)
def _of_package(name: str, path: tuple[str, ...]) -> Metric | None:
    """What a package says of its metric. A figure of numbers that are there does not fail for it:
    what cannot be loaded is unknown, with a warning."""
    try:
        plugin = find("metric", name, METRICS)
        said = plugin.load() if plugin else None
    except DeltaLensError as error:
        warnings.warn(str(error), stacklevel=2)
        return None
    better = getattr(said, "better", None)
    if better not in DIRECTIONS:
        return None
    label, unit = (str(getattr(said, one, "")) for one in ("label", "unit"))
    return Metric(
        label=(label or name.replace("_", " ")).replace("{", "{{").replace("}", "}}"),
        better=better,
        unit=unit,
        per_cent=getattr(said, "per_cent", False) is True,
        ratio=getattr(said, "ratio", True) is True,
    )


def better_of(metric: str, own: Mapping[str, Better] | None = None) -> Better | None:
    """Which way a metric is better; None where nobody has said so.

    Args:
        metric: as the records name it.
        own: directions of the caller's own metrics, by their names with or without the data.
    """
    for name in (metric, short_name(metric)):
        if own and name in own:
            return own[name]
    known = known_metric(metric)
    return known.better if known else None


def is_lower_better(better: Better | None) -> bool:
    """Whether the lowest values are the best; False, too, where nobody has said so."""
    return better == "lower"


def gain(value: float, other: float, better: Better) -> float:
    """By how much a value is better than another: below 0 where it is worse."""
    return other - value if is_lower_better(better) else value - other


def is_worse(value: float, other: float, better: Better) -> bool:
    """Whether a value is worse than another; False where either is no number."""
    return value > other if is_lower_better(better) else value < other


def leading(metrics: Iterable[str], own: Mapping[str, Better] | None = None) -> str | None:
    """The metric that a summary speaks of: exact match, else agreement, else loss; else the first
    one that has a direction, else the first; None of none."""
    order = [name for name, known in METRICS.items() if known.leads]

    def rank(metric: str) -> int:
        if short_name(metric) in order:
            return order.index(short_name(metric))
        return len(order) + (better_of(metric, own) is None)

    return min(metrics, key=rank, default=None)


def is_shown(metric: str) -> bool:
    """Whether tables and pictures of trainings have a place for it."""
    known = known_metric(metric)
    return known is None or known.shown


def compares_as_ratio(metric: str) -> bool:
    """Whether one value of a metric over another, such as a distance in per cent, says something;
    True of one of the caller's own."""
    known = known_metric(metric)
    return known is None or known.ratio


def scale_of(metric: str) -> float:
    """From a metric's records to its axis: 100 for a fraction that is shown in per cent."""
    known = known_metric(metric)
    return 100.0 if known and known.per_cent else 1.0


def axis_label(metric: str, against: str = "the fine-tune") -> str:
    """A metric with its unit.

    Args:
        metric: as the records name it.
        against: the model that it is measured against, where it is.
    """
    known = known_metric(metric)
    if known is None:
        return short_name(metric).replace("_", " ")
    unit = "%" if known.per_cent else known.unit
    return known.label.format(against) + (f" ({unit})" if unit else "")


def check_better(better: Mapping[str, str] | None, *, custom: bool) -> dict[str, Better]:
    """The directions of a caller's own metrics.

    Args:
        better: name -> `higher` or `lower`.
        custom: the study measures by a metric of the caller's own.

    Raises:
        DeltaLensError: another word, or there is no such metric.
    """
    given = dict(better or {})
    if given and not custom:
        raise DeltaLensError(
            "better says which way a metric of your own is better: give metric=... too; the "
            "directions of deltalens' own are known"
        )
    ways: dict[str, Better] = {way: way for way in DIRECTIONS}
    for name, way in given.items():
        if way not in ways:
            raise DeltaLensError(f"better: {name!r}: {way!r}; write 'higher' or 'lower'")
    return {name: ways[way] for name, way in given.items()}


def no_direction(metric: str, said: str | None = None) -> str:
    """What a summary says of a caller's metric of which nobody has said which way is better.

    Args:
        metric: as the records name it.
        said: as the summary names it.
    """
    short = short_name(metric)
    return (
        f"{said or metric}: unknown whether higher or lower is better, so values are not compared; "
        f"run the study again with better={{{short!r}: 'higher'}} (or 'lower')"
    )
