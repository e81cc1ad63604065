"""A grid of learning rates: what every rate came to, which was chosen, and how far apart the rates
of a method lie (SPEFT's claim is that sparse tuning is less sensitive to them)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import Better
from deltalens.io.records import LEARNING_RATE_COLUMN, chosen, without_choosing
from deltalens.io.tables import Table, over_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RateGrid", "rate_shown"]


def rate_shown(rate: float) -> str:
    """Write a learning rate.

    Args:
        rate: 0 of a model that takes no steps.

    Returns:
        The rate, or `-`.
    """
    return f"{rate:g}" if rate else "-"


@dataclass(frozen=True)
class RateGrid:
    """The cells of a study at all its learning rates."""

    cells: pd.DataFrame
    """Of the record, at every rate."""
    axis: str
    """The column along which a sweep's trainings differ; empty in a comparison."""

    @property
    def rates(self) -> list[float]:
        """The rates, ascending, without the 0 of models that take no steps."""
        return sorted({float(rate) for rate in self.cells[LEARNING_RATE_COLUMN] if rate})

    def sentence(self, metric: str, better: Better) -> str:
        """Say how far the scores of each method's rates lie apart.

        Args:
            metric: as the records name it.
            better: which way it is better.

        Returns:
            A sentence, methods with the least spread first; and which were best at the lowest or
            highest rate, beyond which there may be a better one.
        """
        spread: dict[str, list[float]] = {}
        taken, at_edge = self._taken(metric), dict[str, None]()
        for (method, point), means in self._means(metric):
            spread.setdefault(method, []).append(_apart(means))
            if {*taken.get((method, point), ())} & {self.rates[0], self.rates[-1]}:
                at_edge[method] = None
        averages = {method: sum(each) / len(each) for method, each in spread.items()}
        order = sorted(averages, key=lambda method: _finite_first(averages[method]))
        where = ", mean over its points" if self.axis else ""
        shown = ", ".join(f"{method} {averages[method]:.4f}" for method in order)
        return (
            f"{metric}, worst minus best of {len(self.rates)} learning rates{where} "
            f"({better} is better): {shown or 'no rates to compare'}"
            + (f"; chosen at the end of the grid: {', '.join(at_edge)}" if at_edge else "")
        )

    def table(self, metric: str) -> Table:
        """Show the mean over seeds at every rate.

        Args:
            metric: as the records name it.

        Returns:
            A table with a row for each method and point, the chosen rate and the spread last.
        """
        taken = self._taken(metric)
        rows = tuple(
            (
                method,
                *([point] if self.axis else []),
                *(_number(float(means.get(rate, math.nan))) for rate in self.rates),
                ", ".join(rate_shown(rate) for rate in taken.get((method, point), ())),
                _number(_apart(means)),
            )
            for (method, point), means in self._means(metric)
        )
        heads = ["method", *([self.axis.replace("_", " ")] if self.axis else [])]
        title = f"{metric} at each learning rate"
        return Table(title, (*heads, *map(rate_shown, self.rates), "chosen", "spread"), rows)

    def as_json(self, metric: str) -> dict[str, Any]:
        """Give the numbers to a script.

        Args:
            metric: as the records name it.

        Returns:
            Method (in a sweep method, then point) -> `means` by rate, `chosen` and `spread`.
        """
        found: dict[str, Any] = {}
        taken = self._taken(metric)
        for (method, point), means in self._means(metric):
            own = {
                "means": {
                    rate_shown(rate): float(means.loc[rate]) for rate in map(float, [*means.index])
                },
                "chosen": next(iter(taken.get((method, point), ())), None),
                "spread": _apart(means),
            }
            if self.axis:
                found.setdefault(method, {})[point] = own
            else:
                found[method] = own
        return found

    def _means(self, metric: str) -> Iterator[tuple[tuple[str, str], pd.Series[float]]]:
        """(method, point) -> the mean over seeds by rate, where there are rates."""
        cells = without_choosing(self.cells)
        own = cells[(cells["metric"] == metric) & (cells[LEARNING_RATE_COLUMN] > 0)]
        for key, part in own.groupby(self._point, sort=False):
            yield _key(key), over_seeds(part.groupby(LEARNING_RATE_COLUMN)["value"])

    def _taken(self, metric: str) -> dict[tuple[str, str], list[float]]:
        cells = chosen(self.cells)
        own = cells[cells["metric"] == metric]
        return {
            _key(key): sorted({float(rate) for rate in part[LEARNING_RATE_COLUMN]})
            for key, part in own.groupby(self._point, sort=False)
        }

    @property
    def _point(self) -> list[str]:
        return ["method", *([self.axis] if self.axis else [])]


def _key(key: Any) -> tuple[str, str]:
    method, point = (*key, "")[:2]
    return str(method), f"{point:g}" if isinstance(point, float) else str(point)


def _apart(means: pd.Series[float]) -> float:
    """The distance between the best and the worst mean; NaN if one is not finite."""
    return float(means.max(skipna=False) - means.min(skipna=False))


def _finite_first(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _number(value: float) -> str:
    return f"{value:.4f}"
