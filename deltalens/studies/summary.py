"""What a drop study found, in a few sentences and a table per metric."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DropSummary", "StrategySummary", "summarise"]

_LEADING = ("exact_match", "top1_agreement", "loss")
_LOW_IS_GOOD = {"loss", "perplexity", "kl"}
_NEAR = (0.01, 0.05)


@dataclass(frozen=True)
class StrategySummary:
    """How one strategy fares on the leading metric."""

    strategy: str
    values: dict[float, float]
    """Rate -> value, the mean over seeds."""
    within: dict[float, float | None]
    """Tolerance (0.01, 0.05) -> the largest rate up to which every value is that near to the
    fine-tune's; None if not even the first is."""
    broken: float | None
    """The first rate at which more than half of what tuning gained is lost; None if never."""


@dataclass(frozen=True)
class DropSummary:
    """The answer of a drop study."""

    record: StudyRecord
    metric: str
    """The leading metric: exact match, else agreement, else loss, else the first."""
    ft: float
    base: float
    strategies: tuple[StrategySummary, ...]
    unchanged: float
    """Share of entries whose delta is exactly 0."""

    def sentences(self) -> Iterator[str]:
        """The summary as a person reads it."""
        name = self.metric
        yield f"{name}: {_number(self.ft)} fine-tuned, {_number(self.base)} base"
        for found in self.strategies:
            if found.strategy == "trivial":
                yield self._holds(found)
        for found in self.strategies:
            if found.strategy != "trivial":
                yield self._breaks(found)
        yield f"{100 * self.unchanged:.2f} % of the entries are exactly unchanged" + (
            ": below that rate a trivial drop changes nothing (--of changed leaves them out)"
            if self.unchanged >= 0.005 and not self.record.asked["changed_only"]
            else ""
        )

    def _holds(self, found: StrategySummary) -> str:
        limits = [
            f"within {100 * near:.0f} % up to {rate:g}"
            if rate is not None
            else f"not within {100 * near:.0f} % at any rate"
            for near, rate in found.within.items()
        ]
        return f"trivial: {', '.join(limits)}{self._break(found)}"

    def _breaks(self, found: StrategySummary) -> str:
        near = found.within[_NEAR[-1]]
        holds = f"within 5 % up to {near:g}" if near else "outside 5 % from the first rate on"
        return f"{found.strategy}: {holds}{self._break(found)}"

    @staticmethod
    def _break(found: StrategySummary) -> str:
        if found.broken is None:
            return "; never loses half of what tuning gained before the base"
        return f"; half of what tuning gained is lost by {found.broken:g}"

    def tables(self) -> list[Table]:
        """One table per metric: rates down, strategies across; random as mean ± deviation over
        seeds."""
        made = []
        for metric, frame in self.record.cells.groupby("metric", sort=False):
            means = _over_seeds(frame, "mean")
            spread = _over_seeds(frame, "std")
            names = list(dict.fromkeys(frame["strategy"]))
            rows = tuple(
                (f"{rate:g}", *(_cell(means, spread, name, rate) for name in names))
                for rate in sorted(set(frame["rate"]))
            )
            made.append(Table(str(metric), ("drop rate", *names), rows))
        return made

    def as_json(self) -> dict[str, Any]:
        """The summary for scripts."""
        return {
            "study": str(self.record.path),
            "metric": self.metric,
            "fine_tuned": self.ft,
            "base": self.base,
            "unchanged": self.unchanged,
            "entries": self.record.facts["entries"],
            "strategies": {
                found.strategy: {
                    "values": {f"{rate:g}": value for rate, value in found.values.items()},
                    "within": {f"{near:g}": rate for near, rate in found.within.items()},
                    "half_lost_at": found.broken,
                }
                for found in self.strategies
            },
            "notes": self.record.facts.get("notes", []),
        }


def _over_seeds(frame: pd.DataFrame, how: str) -> dict[tuple[str, float], float]:
    grouped = frame.groupby(["strategy", "rate"])["value"].agg(how)
    return {(str(key[0]), float(key[1])): float(value) for key, value in grouped.items()}  # type: ignore[index]


def _cell(
    means: dict[tuple[str, float], float],
    spread: dict[tuple[str, float], float],
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


def summarise(record: StudyRecord) -> DropSummary:
    """Summarise a drop study, also one that is not finished.

    Raises:
        RecordError: it has not measured the fine-tune and the base yet, or is another kind.
    """
    if record.kind != "drop-study":
        raise RecordError(f"{record.path}: a {record.kind}, not a drop study")
    metrics = list(dict.fromkeys(record.cells["metric"]))
    leading = [m for name in _LEADING for m in metrics if m.split("/")[-1] == name] or metrics
    frame = record.cells[record.cells["metric"] == leading[0]] if leading else record.cells
    ends = {rate: frame[frame["rate"] == rate]["value"] for rate in (0.0, 1.0)}
    if any(end.empty for end in ends.values()):
        raise RecordError(f"{record.path}: too few cells are finished for a summary")
    ft, base = (float(ends[rate].iloc[0]) for rate in (0.0, 1.0))
    low = leading[0].split("/")[-1] in _LOW_IS_GOOD or (
        leading[0].split("/")[-1] not in _LEADING and ft < base
    )
    found = tuple(
        _of_strategy(str(name), part, ft, base, low)
        for name, part in frame.groupby("strategy", sort=False)
    )
    facts = record.facts
    return DropSummary(record, leading[0], ft, base, found, facts["unchanged"] / facts["entries"])


def _of_strategy(
    name: str, frame: pd.DataFrame, ft: float, base: float, low: bool
) -> StrategySummary:
    means = frame.groupby("rate")["value"].mean()
    values = {float(rate): float(value) for rate, value in sorted(means.items())}  # type: ignore[arg-type]
    inner = {rate: value for rate, value in values.items() if 0 < rate < 1}

    def loss(value: float) -> float:
        return value - ft if low else ft - value

    within: dict[float, float | None] = {}
    for near in _NEAR:
        far = [rate for rate, value in inner.items() if not loss(value) <= near * abs(ft)]
        held = [rate for rate in inner if not far or rate < far[0]]
        within[near] = max(held, default=None)
    half = abs(ft - base) / 2
    broken = next((rate for rate, value in inner.items() if not loss(value) <= half), None)
    return StrategySummary(name, values, within, broken)
