"""What a drop study found, in a few sentences and a table per metric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import (
    Better,
    better_of,
    compares_as_ratio,
    gain,
    is_worse,
    leading,
    no_direction,
)
from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table, over_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DropSummary", "StrategySummary", "summarize"]

_NEAR = (0.01, 0.05)


@dataclass(frozen=True)
class StrategySummary:
    """How one strategy fares on the leading metric."""

    strategy: str
    values: dict[float, float]
    """Rate -> value, the mean over seeds; not finite where one seed's is not."""
    within: dict[float, float | None]
    """Tolerance (0.01, 0.05) -> the largest rate up to which every value is that near to the
    fine-tune's; None if not even the first is. Empty where nothing can be said, and of a metric
    whose ratios say nothing."""
    broken: float | None
    """The first rate at which more than half of what tuning gained is lost; None if never, or if
    nothing can be said."""
    orders: tuple[int, int] | None = None
    """Of `random`: on how many random orders a value rests, the fewest and the most."""

    @property
    def inner(self) -> dict[float, float]:
        """The values between the fine-tune and the base."""
        return {rate: value for rate, value in self.values.items() if 0 < rate < 1}

    @property
    def gaps(self) -> list[float]:
        """The rates between them at which the value is not finite."""
        return [rate for rate, value in self.inner.items() if not math.isfinite(value)]


@dataclass(frozen=True)
class DropSummary:
    """The answer of a drop study."""

    record: StudyRecord
    metric: str
    """The leading metric: exact match, else agreement, else loss, else the first."""
    better: Better | None
    """Which way it is better; None where nobody has said so."""
    ft: float
    base: float
    all_back: float
    """At rate 1: the base's value, unless tensors are on one side only."""
    strategies: tuple[StrategySummary, ...]
    unchanged: float
    """Share of entries whose delta is exactly 0."""

    @property
    def gained(self) -> bool:
        """Whether the fine-tune is better than the base; False where that is not known."""
        if self.better is None or not (math.isfinite(self.ft) and math.isfinite(self.base)):
            return False
        return is_worse(self.base, self.ft, self.better)

    def sentences(self) -> Iterator[str]:
        """The summary as a person reads it."""
        name = self.metric
        unpaired = self.record.facts.get("unpaired")
        between = f"{_number(self.all_back)} with all put back, " if unpaired else ""
        yield f"{name}: {_number(self.ft)} fine-tuned, {between}{_number(self.base)} base"
        if unpaired:
            yield f"rate 1 is not the base: {unpaired}"
        if self.better is None:
            yield no_direction(name)
        elif not math.isfinite(self.ft):
            yield f"{name} of the fine-tune is not finite: nothing is compared with it"
        else:
            order = sorted(self.strategies, key=lambda found: found.strategy != "trivial")
            yield from (self._of(found) for found in order)
            if not math.isfinite(self.base):
                yield f"{name} of the base is not finite: nothing is said of what tuning gained"
            elif not self.gained:
                yield f"tuning gained nothing on {name}"
        gaps = [
            f"{found.strategy} at {', '.join(f'{rate:g}' for rate in found.gaps)}"
            for found in self.strategies
            if found.gaps
        ]
        if gaps:
            yield f"{name} is not finite, and left out: {'; '.join(gaps)}"
        yield f"{100 * self.unchanged:.2f} % of the entries are exactly unchanged" + (
            ": below that rate a trivial drop changes nothing (--of changed leaves them out)"
            if self.unchanged >= 0.005 and not self.record.spec["changed_only"]
            else ""
        )

    def _of(self, found: StrategySummary) -> str:
        said = [part for part in (_holds(found), self._break(found)) if part]
        return f"{found.strategy}: {'; '.join(said) or 'nothing to compare'}{_rests(found)}"

    def _break(self, found: StrategySummary) -> str:
        if found.broken is not None:
            return f"half of what tuning gained is lost by {found.broken:g}"
        if not self.gained:
            return ""
        finite = " that is finite" if found.gaps else ""
        return f"keeps over half of the gain at every rate below 1{finite}"

    def tables(self) -> list[Table]:
        """One table per metric: rates down, strategies across; random as mean ± deviation over
        seeds."""
        made = []
        for metric, frame in self.record.cells.groupby("metric", sort=False):
            groups = frame.groupby(["strategy", "rate"])["value"]
            means, spread = (over_seeds(groups, how).to_dict() for how in ("mean", "std"))
            names = list(dict.fromkeys(frame["strategy"]))
            rows = tuple(
                (f"{rate:g}", *(_cell(means, spread, name, rate) for name in names))
                for rate in sorted(set(frame["rate"]))
            )
            made.append(Table(str(metric), ("drop rate", *names), rows))
        return made

    def as_json(self) -> dict[str, Any]:
        """The summary for scripts."""
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
                found.strategy: {
                    "values": {f"{rate:g}": value for rate, value in found.values.items()},
                    "within": {f"{near:g}": rate for near, rate in found.within.items()},
                    "half_lost_at": found.broken,
                    **({"orders": found.orders[0]} if found.orders else {}),
                }
                for found in self.strategies
            },
            "notes": self.record.facts.get("notes", []),
        }


def _holds(found: StrategySummary) -> str:
    """How far a strategy keeps near the fine-tune."""
    if not found.within:
        return ""
    if found.strategy == "trivial":
        return ", ".join(
            f"within {100 * near:.0f} % up to {rate:g}"
            if rate is not None
            else f"not within {100 * near:.0f} % at any rate"
            for near, rate in found.within.items()
        )
    near, first = found.within[_NEAR[-1]], min(found.inner, default=None)
    if near is not None:
        return f"within 5 % up to {near:g}"
    if first is None or first in found.gaps:
        return "not within 5 % at any rate"
    return f"already more than 5 % worse than the fine-tune at rate {first:g}"


def _rests(found: StrategySummary) -> str:
    if found.orders is None:
        return ""
    few, many = found.orders
    if many == 1:
        return " (on one random order)"
    return f" (on the mean of {many if few == many else f'{few} to {many}'} random orders)"


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
    return _number(means[key]) + (f" ± {_number(several)}" if several > 0 else "")


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}"


def summarize(record: StudyRecord) -> DropSummary:
    """Summarize a drop study, also one that is not finished.

    Raises:
        RecordError: it has not measured the fine-tune and the base yet, or is another kind.
    """
    if record.kind != "drop-study":
        raise RecordError(f"{record.path}: a {record.kind}, not a drop study")
    own = record.facts.get("better")
    metric = leading(dict.fromkeys(record.cells["metric"]), own)
    frame = record.cells[record.cells["metric"] == metric]
    own_base = frame[frame["strategy"] == "base"]["value"]
    frame = frame[frame["strategy"] != "base"]
    ends = {rate: frame[frame["rate"] == rate]["value"] for rate in (0.0, 1.0)}
    if metric is None or any(end.empty for end in ends.values()):
        raise RecordError(f"{record.path}: too few cells are finished for a summary")
    ft, all_back = (float(ends[rate].iloc[0]) for rate in (0.0, 1.0))
    base = all_back if own_base.empty else float(own_base.iloc[0])
    better = better_of(metric, own)
    found = tuple(
        _of_strategy(str(name), part, ft, base, better, compares_as_ratio(metric))
        for name, part in frame.groupby("strategy", sort=False)
    )
    facts = record.facts
    unchanged = facts["unchanged"] / facts["entries"]
    return DropSummary(record, metric, better, ft, base, all_back, found, unchanged)


def _of_strategy(
    name: str, frame: pd.DataFrame, ft: float, base: float, better: Better | None, ratio: bool
) -> StrategySummary:
    means = over_seeds(frame.groupby("rate")["value"])
    values = {float(rate): float(value) for rate, value in sorted(means.items())}  # type: ignore[arg-type]
    seeds = frame[frame["rate"].between(0, 1, "neither")].groupby("rate")["seed"].nunique()
    orders = (int(seeds.min()), int(seeds.max())) if name == "random" and len(seeds) else None
    found = StrategySummary(name, values, {}, None, orders)
    if better is None or not math.isfinite(ft):
        return found

    def loss(value: float) -> float:
        return gain(ft, value, better)

    within: dict[float, float | None] = {}
    for near in _NEAR if ratio else ():
        far = [
            rate
            for rate, value in found.inner.items()
            if not (math.isfinite(value) and loss(value) <= near * abs(ft))
        ]
        held = [rate for rate in found.inner if not far or rate < far[0]]
        within[near] = max(held, default=None)
    half = loss(base) / 2
    lost = (
        rate for rate, value in found.inner.items() if math.isfinite(value) and loss(value) > half
    )
    broken = next(lost, None) if math.isfinite(base) and half > 0 else None
    return StrategySummary(name, values, within, broken, orders)
