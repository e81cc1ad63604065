"""What a training logged: its loss, what was measured on the way, and what it took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from deltalens.io.records import TrainingRecord
from deltalens.io.tables import Table
from deltalens.reports.wording import number, plus_minus

__all__ = ["Measured", "TrainingSummary", "summarize_training"]


class Measured(NamedTuple):
    """A metric on the evaluation data."""

    step: int
    value: float
    stderr: float
    """NaN if unknown."""
    n: int


@dataclass(frozen=True)
class TrainingSummary:
    """A training in numbers and sentences."""

    record: TrainingRecord
    losses: tuple[tuple[int, float], ...]
    """Step and training loss, for each logged step."""
    evaluations: tuple[tuple[str, Measured], ...]
    """In the order in which they were measured."""

    @property
    def method(self) -> str:
        """The name of the method."""
        return str(self.record.spec.get("method", "unknown method"))

    @property
    def unit(self) -> str:
        """The unit of the loss."""
        units = self.record.facts.get("units")
        return str(units.get("loss", "")) if isinstance(units, dict) else ""

    @property
    def steps(self) -> int:
        """Number of logged steps."""
        return len(self.losses)

    @property
    def last_losses(self) -> list[float]:
        """Those of the last tenth of the steps, at least one."""
        return [loss for _, loss in self.losses[-max(1, -(-self.steps // 10)) :]]

    @property
    def spread(self) -> float:
        """Their standard deviation; NaN of one, or if one is not finite."""
        last = self.last_losses
        if len(last) < 2 or not all(map(math.isfinite, last)):
            return math.nan
        return statistics.stdev(last)

    @property
    def measured(self) -> dict[str, Measured]:
        """Metric -> the last measurement."""
        return dict(self.evaluations)

    def sentences(self) -> Iterator[str]:
        """Say what was trained, how long it took, and what came of it.

        Returns:
            Sentences, as a person reads them.
        """
        facts = self.record.facts
        if isinstance(facts.get("seconds"), int | float) and self.record.finished:
            yield f"{self.method}: {self.steps:,} steps logged, in {facts['seconds']:,.1f} s"
        else:
            yield f"{self.method}: {self.steps:,} steps logged"
        if self.losses:
            mean = statistics.fmean(self.last_losses)
            yield (
                f"mean training loss over the last 10 % of steps: {plus_minus(mean, self.spread)}"
                f"{f' ({self.unit})' if self.unit else ''}"
            )
        for name, one in self.measured.items():
            examples = f" (n = {one.n:,})" if one.n else ""
            yield f"{name}: {plus_minus(one.value, one.stderr)}{examples} after step {one.step:,}"

    def tables(self) -> list[Table]:
        """Show what was measured, and when.

        Returns:
            A table with a row for each evaluation; none if there was none.
        """
        rows = tuple(
            (f"{one.step:,}", name, number(one.value), number(one.stderr), f"{one.n:,}")
            for name, one in self.evaluations
        )
        heads = ("step", "metric", "value", "standard error", "n")
        return [Table("evaluations", heads, rows)] if rows else []

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            JSON values; numbers may be NaN.
        """
        return {
            "training": str(self.record.path),
            "method": self.method,
            "losses": [list(one) for one in self.losses],
            "metrics": {name: list(one) for name, one in self.measured.items()},
        }


def summarize_training(record: TrainingRecord) -> TrainingSummary:
    """Summarize a training.

    Args:
        record: finished or not.

    Returns:
        Its summary.

    Raises:
        RecordError: its file of metrics is damaged.
    """
    evaluations = tuple(
        (name, Measured(step, *_numbers(one.value, one.stderr), int(one.n or 0)))
        for step, name, one in record.evaluations()
    )
    return TrainingSummary(record, tuple(record.logged().get("loss", {}).items()), evaluations)


def _numbers(value: Any, error: Any) -> tuple[float, float]:
    return float(value), math.nan if error is None else float(error)
