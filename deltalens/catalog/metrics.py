"""The metrics: their labels and units, which values are better, and how they compare."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
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
    "first_that_tells",
    "gain",
    "is_lower_better",
    "is_shown",
    "is_worse",
    "known_metric",
    "leading",
    "leading_that_tell",
    "no_direction",
    "scale_of",
    "short_name",
]

Better = Literal["higher", "lower"]
"""Whether higher or lower values of a metric are better."""
DIRECTIONS: tuple[Better, ...] = get_args(Better)
HIGHER: Better = "higher"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: how it is labeled, and how its values compare."""

    label: str
    """On an axis; `{}` stands for the model that it is measured against."""
    better: Better
    unit: str = ""
    ratio: bool = True
    """Whether the ratio of two values means anything. It does not for a margin, whose zero is
    arbitrary."""
    per_cent: bool = False
    """Whether figures and tables show per cent of what the records hold as a fraction."""
    leads: bool = False
    """Whether a summary may use it as its leading metric."""
    shown: bool = True
    """Whether it has a column or panel of its own where trainings are compared."""


# A summary takes the first of these that leads and was measured.
METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(label="exact match", better="higher", per_cent=True, leads=True),
    # Of rows with labels: classes, then scores.
    "accuracy": Metric(label="accuracy", better="higher", per_cent=True, leads=True),
    "f1": Metric(label="F1", better="higher", per_cent=True),
    "cross_entropy": Metric(label="cross-entropy", better="lower", unit="nats per row"),
    "pearson": Metric(label="Pearson correlation", better="higher", per_cent=True, leads=True),
    "squared_error": Metric(label="squared error", better="lower", unit="per row"),
    "top1_agreement": Metric(
        label="top-1 agreement with {}", better="higher", per_cent=True, leads=True
    ),
    "loss": Metric(label="loss", better="lower", unit="nats per target token", leads=True),
    "kl": Metric(label="KL({} ‖ model)", better="lower", unit="nats per token"),
    # DPO measures these against the model that the training starts from.
    "preference_accuracy": Metric(
        label="preference accuracy", better="higher", per_cent=True, leads=True
    ),
    "dpo_loss": Metric(label="DPO loss", better="lower", unit="nats per preference"),
    "reward_margin": Metric(label="reward margin", better="higher", unit="nats", ratio=False),
    # It is exp(loss): no news beside the loss.
    "perplexity": Metric(label="perplexity", better="lower", shown=False),
    # Of standard tasks, as the lm-evaluation-harness calls them.
    "acc": Metric(label="accuracy", better="higher", per_cent=True, leads=True),
    "acc_norm": Metric(label="length-normalized accuracy", better="higher", per_cent=True),
    "pass_at_1": Metric(label="pass@1", better="higher", per_cent=True, leads=True),
    "word_perplexity": Metric(label="perplexity per word", better="lower"),
    "byte_perplexity": Metric(label="perplexity per byte", better="lower"),
    "bits_per_byte": Metric(label="bits per byte", better="lower", leads=True),
    # On the training rows, with whatever the method does to the model. The study's facts say which
    # loss it is, and its unit.
    "training_loss": Metric(label="training loss", better="lower", shown=False),
}
"""Every metric whose meaning is known, by its name in the records."""


def short_name(metric: str) -> str:
    """Strip a metric's data set (`FILE/metric`) and step (`metric@100`).

    Args:
        metric: as the records name it.

    Returns:
        Its own name.

    Example:
        >>> short_name("maths/exact_match@100")
        'exact_match'
    """
    return metric.rpartition("/")[2].partition("@")[0]


def known_metric(metric: str) -> Metric | None:
    """Look up a metric of deltalens or of an installed package.

    Args:
        metric: as the records name it.

    Returns:
        What is known of it; None for a metric of the caller's own.
    """
    name = short_name(metric)
    return METRICS.get(name) or _of_package(name, tuple(sys.path))


@functools.lru_cache(maxsize=256)
def _of_package(name: str, path: tuple[str, ...]) -> Metric | None:
    """What a package says of its metric. Existing numbers can be drawn without it, so a metric that
    cannot be loaded is unknown, with a warning."""
    try:
        plugin = find("metric", name, METRICS)
        attributes = plugin.load() if plugin else None
    except DeltaLensError as error:
        warnings.warn(str(error), stacklevel=2)
        return None
    better = getattr(attributes, "better", None)
    if better not in DIRECTIONS:
        return None
    label, unit = (str(getattr(attributes, field, "")) for field in ("label", "unit"))
    return Metric(
        label=(label or name.replace("_", " ")).replace("{", "{{").replace("}", "}}"),
        better=better,
        unit=unit,
        per_cent=getattr(attributes, "per_cent", False) is True,
        ratio=getattr(attributes, "ratio", True) is True,
    )


def better_of(metric: str, own: Mapping[str, Better] | None = None) -> Better | None:
    """Look up whether higher or lower values of a metric are better.

    Args:
        metric: as the records name it.
        own: directions of the caller's own metrics, by their names with or without the data set.

    Returns:
        The direction; None if it is unknown.
    """
    for name in (metric, short_name(metric)):
        if own and name in own:
            return own[name]
    known = known_metric(metric)
    return known.better if known else None


def is_lower_better(better: Better | None) -> bool:
    """Tell whether the lowest values are the best.

    Args:
        better: the direction; None if it is unknown.

    Returns:
        True for `lower`; False if the direction is unknown.
    """
    return better == "lower"


def gain(value: float, other: float, better: Better) -> float:
    """Compute how much better a value is than another.

    Args:
        value, other: of one metric.
        better: its direction.

    Returns:
        The difference; below 0 if the value is worse.
    """
    return other - value if is_lower_better(better) else value - other


def is_worse(value: float, other: float, better: Better) -> bool:
    """Tell whether a value is worse than another.

    Args:
        value, other: of one metric.
        better: its direction.

    Returns:
        Whether it is; False if either is NaN.
    """
    return value > other if is_lower_better(better) else value < other


def leading(metrics: Iterable[str], own: Mapping[str, Better] | None = None) -> str | None:
    """Choose the metric that a summary speaks of.

    Args:
        metrics: as the records name them.
        own: directions of the caller's own metrics.

    Returns:
        Exact match if there is one, else accuracy, else Pearson's correlation, else agreement, else
        loss, else the first metric with a direction, else the first; None of no metrics.
    """
    order = [name for name, known in METRICS.items() if known.leads]

    def rank(metric: str) -> int:
        if short_name(metric) in order:
            return order.index(short_name(metric))
        return len(order) + (better_of(metric, own) is None)

    return min(metrics, key=rank, default=None)


def first_that_tells(
    first: str,
    names: Iterable[str],
    tells: Callable[[str], bool],
    own: Mapping[str, Better] | None = None,
) -> str:
    """Choose the metric that conclusions rest on: where the leading one has the same value for all
    that is compared, as exact match has if every answer is wrong, another one of the same data.

    Args:
        first: the leading metric.
        names: all metrics, as the records name them.
        tells: whether a metric has different values.
        own: directions of the caller's own metrics.

    Returns:
        The leading metric if it tells anything, or if none does; else the first that does.
    """
    data = first.rpartition("/")[0]
    others = [
        name
        for name in names
        if name.rpartition("/")[0] == data and "@" not in name and better_of(name, own) is not None
    ]
    return next((name for name in (first, *others) if tells(name)), first)


def leading_that_tell(
    metrics: Iterable[str],
    tells: Callable[[str], bool],
    own: Mapping[str, Better] | None = None,
) -> dict[str, str]:
    """Choose the metric of each data set that conclusions rest on.

    Args:
        metrics: as the records name them.
        tells: whether a metric has different values.
        own: directions of the caller's own metrics.

    Returns:
        The chosen ones, each -> the leading metric of its data set, which may be itself.
    """
    by_data: dict[str, list[str]] = {}
    for metric in metrics:
        by_data.setdefault(metric.rpartition("/")[0], []).append(metric)
    firsts = [first for names in by_data.values() if (first := leading(names, own)) is not None]
    every = [name for names in by_data.values() for name in names]
    return {first_that_tells(first, every, tells, own): first for first in firsts}


def is_shown(metric: str) -> bool:
    """Tell whether a metric has a place in tables and figures of trainings.

    Args:
        metric: as the records name it.

    Returns:
        Whether it has; True for a metric of the caller's own.
    """
    known = known_metric(metric)
    return known is None or known.shown


def compares_as_ratio(metric: str) -> bool:
    """Tell whether the ratio of two values of a metric, such as a difference in per cent, means
    anything.

    Args:
        metric: as the records name it.

    Returns:
        Whether it does; True for a metric of the caller's own.
    """
    known = known_metric(metric)
    return known is None or known.ratio


def scale_of(metric: str) -> float:
    """Look up the factor from a metric's records to its axis.

    Args:
        metric: as the records name it.

    Returns:
        100 for a fraction that is shown in per cent, else 1.
    """
    known = known_metric(metric)
    return 100.0 if known and known.per_cent else 1.0


def axis_label(metric: str, against: str = "the fine-tune") -> str:
    """Label an axis or a column.

    Args:
        metric: as the records name it.
        against: the model that it is measured against, if it is one of those metrics.

    Returns:
        The metric's label with its unit.

    Example:
        >>> axis_label("loss")
        'loss (nats per target token)'
    """
    known = known_metric(metric)
    if known is None:
        return short_name(metric).replace("_", " ")
    unit = "%" if known.per_cent else known.unit
    return known.label.format(against) + (f" ({unit})" if unit else "")


def check_better(better: Mapping[str, str] | None, *, custom: bool) -> dict[str, Better]:
    """Check the directions of a caller's own metrics.

    Args:
        better: metric -> `higher` or `lower`.
        custom: whether the study measures a metric of the caller's own.

    Returns:
        The same, checked.

    Raises:
        DeltaLensError: a direction is another word, or the study has no metric of the caller's own.
    """
    directions = dict(better or {})
    if directions and not custom:
        raise DeltaLensError(
            "better gives the direction of your own metric, so it needs metric=...; deltalens "
            "knows the directions of its own metrics"
        )
    words: dict[str, Better] = {word: word for word in DIRECTIONS}
    for name, word in directions.items():
        if word not in words:
            raise DeltaLensError(f"better: {name!r} is {word!r}; write 'higher' or 'lower'")
    return {name: words[word] for name, word in directions.items()}


def no_direction(metric: str, label: str | None = None) -> str:
    """Word what a summary says of a metric whose direction is unknown.

    Args:
        metric: as the records name it.
        label: as the summary names it; by default the same.

    Returns:
        A sentence that says what to do.
    """
    short = short_name(metric)
    return (
        f"{label or metric}: unknown whether higher or lower is better, so values are not compared;"
        f" run the study again with better={{{short!r}: 'higher'}} (or 'lower')"
    )
