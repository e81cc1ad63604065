"""What a study of trainings shows: the best setting of each method, or the best method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.methods import facts_of, has_ratio
from deltalens.catalog.metrics import (
    Better,
    better_of,
    compares_as_ratio,
    first_that_tells,
    is_lower_better,
    is_shown,
    is_worse,
)
from deltalens.catalog.studies import STUDIES
from deltalens.errors import RecordError
from deltalens.io.records import LEARNING_RATE_COLUMN, StudyRecord, chosen, has_grid
from deltalens.io.tables import Table, is_finite, over_seeds
from deltalens.reports.beside_paper import ranking_beside_paper
from deltalens.reports.budgets import budget_of, leads, masks_apart, with_labels
from deltalens.reports.learning_rates import RateGrid, rate_shown
from deltalens.reports.wording import instead, name_of_blocks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SweepSummary", "summarize_sweep"]

_NEAR = 0.05


@dataclass(frozen=True)
class SweepSummary:
    """A sweep over trainings, or a comparison, in numbers and sentences."""

    record: StudyRecord
    """Of a grid of learning rates the trainings at those that were chosen."""
    grid: RateGrid | None = None
    """All of the grid, if there is one."""

    @property
    def axis(self) -> str:
        """The column along which the trainings differ: `mask_ratio`, `data_ratio` or `group`; empty
        in a comparison."""
        return STUDIES[self.record.kind].axis or ""

    def sentences(self) -> Iterator[str]:
        """Say how the methods fare on the first metric of every data set.

        Returns:
            Sentences, as a person reads them.
        """
        for metric, first in self.leading().items():
            if metric != first:
                yield instead(metric, first, _mean(self.of(first)), "after every training")
            frame, better = self.of(metric), better_of(metric, self.record.facts.get("better"))
            if better is None:
                yield f"{metric}: unknown whether higher or lower is better"
                continue
            yield from (
                self._by_method(metric, frame, better)
                if self.axis
                else [self._ranked(metric, frame, better)]
            )
            if not self.axis and (beside := ranking_beside_paper(self.record, frame, better)):
                yield beside
            if self.axis == "rank":
                yield from leads(metric, frame, better)
            if "refresh_every" in frame:
                yield from masks_apart(metric, frame, better)
            if self.grid is not None:
                yield self.grid.sentence(metric, better)
            gaps = self._gaps(frame)
            if gaps:
                yield f"values of {metric} that are not finite are left out: {', '.join(gaps)}"

    def _by_method(self, metric: str, frame: pd.DataFrame, better: Better) -> Iterator[str]:
        without = frame.groupby("method", sort=False)[self.axis].agg(lambda at: not at.any())
        references = [str(name) for name in without[without].index if not has_ratio(str(name))]
        shown = (f"{name} {_spread(frame, name)}" for name in references)
        yield f"{metric}: {'; '.join(shown)}"
        plain = self.record.plain
        against = plain if plain in references else references[-1] if references else None
        for method, part in frame[~frame["method"].isin(references)].groupby("method", sort=False):
            means = over_seeds(part.groupby(self.axis, sort=False)["value"])
            finite = means[is_finite(means)]
            if finite.empty:
                continue
            best = finite.idxmin() if is_lower_better(better) else finite.idxmax()
            at_best = part[part[self.axis] == best]
            text = f"{method}: best {_spread(at_best)} at {self._setting(best)}"
            if self.axis == "mask_ratio" and against is not None and compares_as_ratio(metric):
                level = _mean(frame[frame["method"] == against])
                if math.isfinite(level):
                    text += f"; {_reach(means, level, against, better)}"
            yield text
        if self.axis == "data_ratio" and "sft" not in references:
            yield from _beside_sft(frame, better)

    def _setting(self, value: Any) -> str:
        """A setting with the name of its axis: `mask ratio 0.1`, `blocks 4-7`."""
        if self.axis == "group":
            return name_of_blocks(str(value))
        return f"{self.axis.replace('_', ' ')} {_shown(value)}"

    def _ranked(self, metric: str, frame: pd.DataFrame, better: Better) -> str:
        means = over_seeds(frame.groupby("method", sort=False)["value"])
        finite = means[is_finite(means)].sort_values(ascending=is_lower_better(better))
        shown = (
            f"{method}{' (from base)' if self._start(str(method)) == 'base' else ''} "
            f"{_spread(frame, str(method))}"
            for method in finite.index
        )
        return f"{metric}, best first: {', '.join(shown) or 'none is finite'}"

    def _gaps(self, frame: pd.DataFrame) -> list[str]:
        """The trainings whose value is not finite: method, setting and seed."""
        columns = ["method", *([self.axis] if self.axis else []), "seed"]
        rows = frame[~is_finite(frame["value"])][columns]
        return [
            " ".join([str(method), *(f"at {_shown(one)}" for one in setting if one != "")])
            + f" (seed {seed})"
            for method, *setting, seed in rows.itertuples(index=False)
        ]

    def tables(self) -> list[Table]:
        """Show means ± standard deviations over seeds.

        Returns:
            A table for each metric, with a row for each setting and a column for each method. For a
            comparison a table for each data set, with a row for each method and a column for each
            metric.
        """
        metrics = [
            metric
            for metric in dict.fromkeys(self.record.cells["metric"])
            if "@" not in metric and is_shown(metric)
        ]
        rates = [self.grid.table(metric) for metric in self.leading() if self.grid is not None]
        if self.axis:
            return [*(self._table(metric) for metric in metrics), *rates]
        sets: dict[str, list[str]] = {}
        for metric in metrics:
            sets.setdefault(metric.rpartition("/")[0], []).append(metric)
        return [*(self._comparison(name, held) for name, held in sets.items()), *rates]

    def _comparison(self, name: str, metrics: list[str]) -> Table:
        frames = [self.of(metric) for metric in metrics]
        methods = dict.fromkeys(str(one) for frame in frames for one in frame["method"])
        rows = tuple(
            (
                method,
                self._start(method),
                *self._rate(frames[0], method),
                *(_spread(frame, method) for frame in frames),
            )
            for method in methods
        )
        heads = (metric.rpartition("/")[2] for metric in metrics)
        rate = () if self.grid is None else ("learning rate",)
        return Table(name, ("method", "from", *rate, *heads), rows)

    def _rate(self, frame: pd.DataFrame, method: str) -> list[str]:
        """The learning rate that was chosen for a method; [] without a grid."""
        if self.grid is None:
            return []
        rates = frame[frame["method"] == method][LEARNING_RATE_COLUMN]
        return [", ".join(dict.fromkeys(rate_shown(float(rate)) for rate in rates)) or "-"]

    def _start(self, method: str) -> str:
        """The model that a method's trainings start from, or `-` of one that is as it is. (The
        first version did not say: all started from the fine-tune.)"""
        name = "sft" if method == self.record.plain else method
        facts = facts_of(name)
        as_it_is = facts is not None and facts.as_it_is
        return "-" if as_it_is else self.record.setting("from", name) or "ft"

    def _table(self, metric: str) -> Table:
        frame = self.of(metric)
        methods = list(dict.fromkeys(frame["method"]))
        numbered, budgets = self.axis != "group", self.axis == "rank"
        if not numbered:
            frame = frame.assign(group=frame["group"].where(frame["group"] != "", "-"))
        rows = tuple(
            (
                _shown(setting),
                *(budget_of(frame, setting) if budgets else ()),
                *(_spread(part, str(method)) for method in methods),
            )
            for setting, part in frame.groupby(self.axis, sort=numbered)
        )
        heads = (self.axis.replace("_", " "), *(("trained", "of the model") if budgets else ()))
        return Table(metric, (*heads, *map(str, methods)), rows)

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            The study's path, and metric -> method -> setting -> mean over seeds (for a comparison
            metric -> method -> mean), as JSON values; numbers may be NaN. Of a grid of learning
            rates also, under `learning_rates`, what every rate came to (`RateGrid.as_json`).
        """
        metrics: dict[str, Any] = {}
        columns = ["metric", "method", *([self.axis] if self.axis else [])]
        for (metric, method, *setting), part in self.record.cells.groupby(columns, sort=False):
            of_metric = metrics.setdefault(str(metric), {})
            mean = _mean(part)
            if setting:
                of_metric.setdefault(str(method), {})[_shown(setting[0])] = mean
            else:
                of_metric[str(method)] = mean
        found = {"study": str(self.record.path), "metrics": metrics}
        if self.grid is not None:
            found["learning_rates"] = {name: self.grid.as_json(name) for name in self.leading()}
        return found

    def of(self, metric: str) -> pd.DataFrame:
        """Take the cells of a metric.

        Args:
            metric: as the records name it.

        Returns:
            Them, with plain training under its objective's name.
        """
        frame = self.record.cells
        own = frame[frame["metric"] == metric]
        return own.assign(method=own["method"].replace("sft", self.record.plain))

    def leading(self) -> dict[str, str]:
        """Choose the metrics that the sentences speak of.

        Returns:
            Of each data set the first one that differs between trainings -> the first one, which is
            nearly always the same.
        """
        every = dict.fromkeys(self.record.cells["metric"])
        names = [str(name) for name in every if name != "training_loss" and "@" not in name]
        own = self.record.facts.get("better")
        firsts: dict[str, str] = {}
        for name in names:
            firsts.setdefault(name.rpartition("/")[0], name)
        return {
            first_that_tells(first, names, self._tells, own): first for first in firsts.values()
        }

    def _tells(self, metric: str) -> bool:
        return bool(self.of(metric)["value"].nunique(dropna=False) > 1)


def _beside_sft(frame: pd.DataFrame, better: Better) -> Iterator[str]:
    """The difference to plain fine-tuning on the same rows with the same seed."""
    finite = frame[is_finite(frame["value"])]
    by_method = {str(m): part for m, part in finite.groupby("method", sort=False)}
    keys = ["data_ratio", "seed"]
    sft = by_method.get("sft", finite[:0]).set_index(keys)["value"]
    for method, part in by_method.items():
        apart = (part.set_index(keys)["value"] - sft).dropna()
        if method == "sft" or apart.empty:
            continue
        shown = []
        for ratio, each in apart.groupby(level=0):
            spread = f" ± {each.std():.4f}" if len(each) > 1 else ""
            shown.append(f"{each.mean():+.4f}{spread} at {_shown(ratio)}")
        yield f"{method} minus sft, seed by seed ({better} is better): {', '.join(shown)}"


def _reach(means: pd.Series[float], level: float, against: str, better: Better) -> str:
    """Up to which mask ratio a method stays close to plain fine-tuning."""
    close = []
    for setting, value in means.sort_index().items():
        far = abs(value - level) > _NEAR * abs(level) and is_worse(value, level, better)
        if far or not math.isfinite(value):
            break
        close.append(setting)
    if not close:
        return f"not within 5 % of {against} even at the smallest mask ratio"
    return f"within 5 % of {against} up to {_shown(close[-1])}"


def _shown(setting: Any) -> str:
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def _spread(frame: pd.DataFrame, method: str | None = None) -> str:
    values = (frame if method is None else frame[frame["method"] == method])["value"]
    if values.empty:
        return "-"
    mean, spread = values.mean(skipna=False), values.std(skipna=False)
    return f"{mean:.4f} ± {spread:.4f}" if math.isfinite(spread) else f"{mean:.4f}"


def _mean(frame: pd.DataFrame) -> float:
    return float(frame["value"].mean(skipna=False))


def summarize_sweep(record: StudyRecord) -> SweepSummary:
    """Summarize a study of trainings, finished or not.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: it is another kind of study, or no cell of it is finished.
    """
    known = STUDIES.get(record.kind)
    if known is None or known.axis is None or record.cells.empty:
        raise RecordError(f"{record.path}: no study of trainings with finished cells")
    if "refresh_every" in record.cells:
        record = dataclasses.replace(record, cells=with_labels(record.cells))
    shown = dataclasses.replace(record, cells=chosen(record.cells))
    if not has_grid(record.cells):
        return SweepSummary(shown)
    return SweepSummary(shown, RateGrid(record.cells, known.axis))
