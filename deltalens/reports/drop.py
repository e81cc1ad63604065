"""What a drop study shows: how much of a delta can be dropped, by strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import (
    Better,
    better_of,
    compares_as_ratio,
    first_that_tells,
    gain,
    is_worse,
    leading,
    no_direction,
)
from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table, over_seeds
from deltalens.reports.wording import instead, number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DropSummary", "StrategySummary", "ends", "summarize_drop_study"]

_NEAR = (0.01, 0.05)


@dataclass(frozen=True)
class StrategySummary:
    """One strategy on the leading metric."""

    strategy: str
    values: dict[float, float]
    """Rate -> value, the mean over seeds; not finite if a seed's value is not."""
    within: dict[float, float | None]
    """Tolerance (0.01, 0.05) -> the largest rate up to which every value is that close to the
    fine-tune's; None if not even the first is. Empty if the metric has no direction, if its ratios
    mean nothing, or if the fine-tune's value is not finite."""
    broken: float | None
    """The first rate at which more than half of the gain from tuning is lost; None if that never
    happens or cannot be said."""
    orders: tuple[int, int] | None = None
    """For `random`: the fewest and the most random orders behind a value."""

    @property
    def inner(self) -> dict[float, float]:
        """The values at rates between 0 and 1."""
        return {rate: value for rate, value in self.values.items() if 0 < rate < 1}

    @property
    def gaps(self) -> list[float]:
        """The rates between 0 and 1 at which the value is not finite."""
        return [rate for rate, value in self.inner.items() if not math.isfinite(value)]


@dataclass(frozen=True)
class DropSummary:
    """A drop study in numbers and sentences."""

    record: StudyRecord
    metric: str
    """The leading metric: exact match, else agreement, else loss, else the first one; but one that
    differs between fine-tune and base, if any does."""
    instead_of: str
    """The leading metric, if it is passed over because it does not differ; empty if not."""
    better: Better | None
    """Whether higher or lower values are better; None if unknown."""
    ft: float
    """Its value for the fine-tune."""
    base: float
    all_back: float
    """Its value at rate 1: the base's, unless only one of the two checkpoints has some tensor."""
    strategies: tuple[StrategySummary, ...]
    unchanged: float
    """Share of entries whose delta is exactly 0."""

    @property
    def gained(self) -> bool:
        """Whether the fine-tune is better than the base; False if that is unknown."""
        if self.better is None or not (math.isfinite(self.ft) and math.isfinite(self.base)):
            return False
        return is_worse(self.base, self.ft, self.better)

    @property
    def flat(self) -> bool:
        """Whether every model has the same finite value, the fine-tune and the base among them."""
        values = {value for held in self.strategies for value in held.values.values()}
        return values | {self.base} == {self.ft}

    def sentences(self) -> Iterator[str]:
        """Say how far each strategy can go before the leading metric suffers.

        Returns:
            Sentences, as a person reads them.
        """
        name = self.metric
        if self.instead_of:
            value = ends(self.record, self.instead_of)[0]
            yield instead(name, self.instead_of, value, "for fine-tune and base alike")
        unpaired = self.record.facts.get("unpaired")
        between = f"at rate 1 {number(self.all_back)}, " if unpaired else ""
        yield f"{name}: fine-tune {number(self.ft)}, {between}base {number(self.base)}"
        if unpaired:
            yield f"rate 1 is not the base: {unpaired}"
        if self.better is None:
            yield no_direction(name)
        elif not math.isfinite(self.ft):
            yield f"{name} of the fine-tune is not finite, so nothing can be compared with it"
        elif self.flat:
            yield (
                f"{name} is the same for every model: another metric or more rows may tell them "
                "apart"
            )
        else:
            order = sorted(self.strategies, key=lambda held: held.strategy != "trivial")
            yield from (self._sentence(held) for held in order)
            if not math.isfinite(self.base):
                yield f"{name} of the base is not finite, so the gain from tuning is unknown"
            elif not self.gained:
                yield f"on {name} the fine-tune is not better than the base"
        gaps = [
            f"{held.strategy} at {', '.join(f'{rate:g}' for rate in held.gaps)}"
            for held in self.strategies
            if held.gaps
        ]
        if gaps:
            yield f"values of {name} that are not finite are left out: {'; '.join(gaps)}"
        yield f"{100 * self.unchanged:.2f} % of the entries are exactly unchanged" + (
            ": below that rate a trivial drop changes nothing (changed_only leaves them out)"
            if self.unchanged >= 0.005 and not self.record.spec["changed_only"]
            else ""
        )

    def _sentence(self, strategy: StrategySummary) -> str:
        parts = [part for part in (_tolerances(strategy), self._break(strategy)) if part]
        said = "; ".join(parts) or "nothing to compare"
        return f"{strategy.strategy}: {said}{_orders(strategy)}"

    def _break(self, strategy: StrategySummary) -> str:
        if strategy.broken is not None:
            return f"loses over half of the gain from tuning at rate {strategy.broken:g}"
        if not self.gained:
            return ""
        rates = "every rate below 1"
        if strategy.gaps:
            rates += " with a finite value"
        return f"keeps over half of the gain from tuning at {rates}"

    def tables(self) -> list[Table]:
        """Show every metric at every rate.

        Returns:
            A table for each metric, with a row for each rate and a column for each strategy;
            `random` is mean ± standard deviation over its orders.
        """
        tables = []
        for metric, frame in self.record.cells.groupby("metric", sort=False):
            groups = frame.groupby(["strategy", "rate"])["value"]
            means, spread = (over_seeds(groups, how).to_dict() for how in ("mean", "std"))
            names = list(dict.fromkeys(frame["strategy"]))
            rows = tuple(
                (f"{rate:g}", *(_cell(means, spread, name, rate) for name in names))
                for rate in sorted(set(frame["rate"]))
            )
            tables.append(Table(str(metric), ("drop rate", *names), rows))
        return tables

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            JSON values; numbers may be NaN.
        """
        unpaired = self.record.facts.get("unpaired")
        return {
            **({"all_put_back": self.all_back, "unpaired": unpaired} if unpaired else {}),
            "study": str(self.record.path),
            "metric": self.metric,
            "better": self.better,
            "fine_tuned": self.ft,
            "base": self.base,
            "unchanged": self.unchanged,
            "entries": self.record.facts["entries"],
            "strategies": {
                held.strategy: {
                    "values": {f"{rate:g}": value for rate, value in held.values.items()},
                    "within": {f"{near:g}": rate for near, rate in held.within.items()},
                    "half_lost_at": held.broken,
                    **({"orders": held.orders[0]} if held.orders else {}),
                }
                for held in self.strategies
            },
            "notes": self.record.facts.get("notes", []),
        }


def _tolerances(strategy: StrategySummary) -> str:
    """Up to which rate a strategy stays close to the fine-tune."""
    if not strategy.within:
        return ""
    if strategy.strategy == "trivial":
        said = []
        for number, (tolerance, rate) in enumerate(strategy.within.items()):
            whose = " of the fine-tune" * (not number)
            reach = "at no rate" if rate is None else f"up to rate {rate:g}"
            said.append(f"within {100 * tolerance:.0f} %{whose} {reach}")
        return ", ".join(said)
    reached, first = strategy.within[_NEAR[-1]], min(strategy.inner, default=None)
    if reached is not None:
        return f"within 5 % of the fine-tune up to rate {reached:g}"
    if first is None or first in strategy.gaps:
        return "within 5 % of the fine-tune at no rate"
    return f"already more than 5 % worse than the fine-tune at rate {first:g}"


def _orders(strategy: StrategySummary) -> str:
    if strategy.orders is None:
        return ""
    few, many = strategy.orders
    if many == 1:
        return " (one random order)"
    return f" (mean of {many if few == many else f'{few} to {many}'} random orders)"


def _cell(
    means: Mapping[Any, float],
    spread: Mapping[Any, float],
    strategy: str,
    rate: float,
) -> str:
    key = strategy, rate
    if key not in means:
        return "-"
    several = spread.get(key, math.nan)
    return number(means[key]) + (f" ± {number(several)}" if several > 0 else "")


def summarize_drop_study(record: StudyRecord) -> DropSummary:
    """Summarize a drop study, finished or not, by its leading metric.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: it has not measured the fine-tune and the base yet, or is another kind of
            study.
    """
    if record.kind != "drop-study":
        raise RecordError(f"{record.path}: holds a study of kind {record.kind!r}, not a drop study")
    own = record.facts.get("better")
    names = [str(name) for name in dict.fromkeys(record.cells["metric"])]
    first = leading(names, own)
    if first is None:
        raise _unmeasured(record)
    metric = first_that_tells(first, names, lambda name: _ends_differ(record, name), own)
    frame = record.cells[record.cells["metric"] == metric]
    frame = frame[frame["strategy"] != "base"]
    ft, base, all_back = ends(record, metric)
    better = better_of(metric, own)
    strategies = tuple(
        _strategy_summary(str(name), part, ft, base, better, compares_as_ratio(metric))
        for name, part in frame.groupby("strategy", sort=False)
    )
    facts = record.facts
    unchanged = facts["unchanged"] / facts["entries"]
    passed_over = first if metric != first else ""
    return DropSummary(
        record, metric, passed_over, better, ft, base, all_back, strategies, unchanged
    )


def _unmeasured(record: StudyRecord) -> RecordError:
    return RecordError(f"{record.path}: the fine-tune and the base are not measured yet")


def ends(record: StudyRecord, metric: str) -> tuple[float, float, float]:
    """Look up a metric of the fine-tune, of the base, and at rate 1.

    Args:
        record: of a drop study.
        metric: as the records name it.

    Returns:
        Three values; at rate 1 it is the base's, unless only one of the two has some tensor.

    Raises:
        RecordError: it has not measured the fine-tune and the base yet.
    """
    frame = record.cells[record.cells["metric"] == metric]
    is_base = frame["strategy"] == "base"
    found = [frame[~is_base & (frame["rate"] == rate)]["value"] for rate in (0.0, 1.0)]
    if any(end.empty for end in found):
        raise _unmeasured(record)
    ft, all_back = (float(end.iloc[0]) for end in found)
    own_base = frame[is_base]["value"]
    return ft, all_back if own_base.empty else float(own_base.iloc[0]), all_back


def _ends_differ(record: StudyRecord, metric: str) -> bool:
    ft, base, _ = ends(record, metric)
    return ft != base  # NaN differs from everything: the summary says that it is not finite.


def _strategy_summary(
    name: str, frame: pd.DataFrame, ft: float, base: float, better: Better | None, ratio: bool
) -> StrategySummary:
    means = over_seeds(frame.groupby("rate")["value"])
    values = {float(rate): float(value) for rate, value in sorted(means.items())}  # type: ignore[arg-type]
    seeds = frame[frame["rate"].between(0, 1, "neither")].groupby("rate")["seed"].nunique()
    orders = (int(seeds.min()), int(seeds.max())) if name == "random" and len(seeds) else None
    summary = StrategySummary(name, values, {}, None, orders)
    if better is None or not math.isfinite(ft):
        return summary

    def loss(value: float) -> float:
        return gain(ft, value, better)

    within: dict[float, float | None] = {}
    for near in _NEAR if ratio else ():
        far = [
            rate
            for rate, value in summary.inner.items()
            if not (math.isfinite(value) and loss(value) <= near * abs(ft))
        ]
        held = [rate for rate in summary.inner if not far or rate < far[0]]
        within[near] = max(held, default=None)
    half = loss(base) / 2
    lost = (
        rate for rate, value in summary.inner.items() if math.isfinite(value) and loss(value) > half
    )
    broken = next(lost, None) if math.isfinite(base) and half > 0 else None
    return StrategySummary(name, values, within, broken, orders)
