"""A mask-ratio sweep as GMT's Tables 1, 2 and 4 show it: its data sets, its metrics, and a mask
ratio for each method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.catalog.methods import METHODS, facts_of, has_ratio, method_name
from deltalens.catalog.metrics import (
    Better,
    axis_label,
    better_of,
    is_lower_better,
    is_shown,
    scale_of,
    short_name,
)
from deltalens.errors import RecordError
from deltalens.figures.loading import load_finite
from deltalens.figures.tables import SPREAD, Block, Measure, measured
from deltalens.io.records import StudyRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AVERAGE", "Sweep", "best_ratio", "in_words", "load_sweep", "measure", "told_apart"]

AVERAGE = "average over the data sets"
"""The name of a data set that is none."""


def _row(method: str) -> str:
    """A method's row in GMT's tables; its own name where they have none."""
    facts, settings = facts_of(method), method.partition(":")[2]
    row = (facts and facts.printed) or method_name(method)
    return f"{row} ({settings.replace(':', ', ')})" if settings else row


@dataclass(frozen=True)
class Sweep:
    """A mask-ratio sweep, finished or not."""

    record: StudyRecord
    frame: pd.DataFrame
    """Its cells without the training loss, and without perplexity, which is the loss again."""
    methods: tuple[str, ...]
    """All methods of the specification, in the paper's order."""

    @property
    def sets(self) -> dict[str, list[str]]:
        """Data set -> its metrics, the leading one first. A single set is named as in the study's
        specification."""
        sets: dict[str, list[str]] = {}
        for metric in dict.fromkeys(self.frame["metric"]):
            sets.setdefault(metric.rpartition("/")[0], []).append(metric)
        spec = self.record.spec.get("eval_data") or [["the study's data"]]
        return {name or str(spec[0][0]): metrics for name, metrics in sets.items()}

    @property
    def stated(self) -> Mapping[str, Better] | None:
        """Which values of metrics are better, as far as the records state it."""
        return self.record.facts.get("better")

    @property
    def trained_on(self) -> str:
        """The name of the training file; of the folder, if the study does not say."""
        return str((self.record.spec.get("data") or [self.record.path.name])[0])

    def label(self, method: str) -> str:
        """Name a method as the paper does; plain training by its objective.

        Args:
            method: its name in records.

        Returns:
            The name of its row.
        """
        if method == "ft":
            return "Pre-trained"
        return self.record.plain.upper() if method == "sft" else _row(method)

    @property
    def shared_metrics(self) -> list[str]:
        """The metrics that all data sets have, and that can be averaged over them; none if there is
        a single one."""
        first, *others = [
            [metric.rpartition("/")[2] for metric in metrics] for metrics in self.sets.values()
        ]
        return [name for name in first if others and all(name in other for other in others)]

    def with_average(self, names: Sequence[str]) -> Sweep:
        """Add a data set to the sweep: the average of all, training by training.

        Args:
            names: of the metrics to average.

        Returns:
            The sweep; its averages are metrics called `AVERAGE/NAME`.
        """
        import pandas as pd

        parts: list[pd.DataFrame] = [self.frame]
        for name in names:
            averaged = {f"{data}/{name}" for data in self.sets}
            mean = (
                self.frame[self.frame["metric"].isin(averaged)]
                .pivot(index=["method", "mask_ratio", "seed"], columns="metric", values="value")
                .mean(axis=1, skipna=False)
            )
            rows = mean.rename("value").reset_index()
            parts.append(rows.assign(metric=f"{AVERAGE}/{name}", n=0))
        return Sweep(self.record, pd.concat(parts, ignore_index=True), self.methods)

    @property
    def printed_names(self) -> dict[tuple[str, ...], str]:
        """What names a row -> the name of the paper's row."""
        names = (self.label(method) for method in self.methods)
        return {(name,): name for name in names}

    def candidates(self, method: str, metric: str, *, plain: bool) -> dict[float, list[float]]:
        """List the mask ratios that compete for a method: those with the most finished seeds.

        Args:
            method: one that has a mask ratio.
            metric: as the records name it.
            plain: whether ratio 0, which is plain fine-tuning, is a candidate.

        Returns:
            Mask ratio -> its values, one for each seed.
        """
        part = self.frame[(self.frame["method"] == method) & (self.frame["metric"] == metric)]
        by_ratio: dict[float, list[float]] = {}
        for ratio, value in zip(part["mask_ratio"], part["value"], strict=True):
            if ratio or plain:
                by_ratio.setdefault(float(ratio), []).append(float(value))
        most = max(map(len, by_ratio.values()), default=0)
        return {ratio: values for ratio, values in by_ratio.items() if len(values) == most}

    def chosen(self, metric: str, ratio: float | None) -> dict[str, float]:
        """Choose the mask ratio at which each method is shown.

        Args:
            metric: whose best mean decides.
            ratio: the same ratio for all methods; None to choose.

        Returns:
            Method -> its mask ratio.

        Raises:
            RecordError: the study has no such ratio, or whether higher or lower is better is
                unknown.
        """
        if ratio is not None:
            measured_at = sorted(self.record.cells["mask_ratio"].unique())
            if ratio not in measured_at:
                shown = ", ".join(f"{each:g}" for each in measured_at)
                raise RecordError(f"{self.record.path}: no mask ratio {ratio:g}; it has {shown}")
        found: dict[str, float] = {}
        for method in self.methods:
            if not has_ratio(method):
                continue
            held = self.candidates(method, metric, plain=False)
            if ratio is not None or held:
                best = ratio if ratio is not None else best_ratio(held, metric, self.stated)
                found[method] = best
        return found

    def block(
        self, title: str, frame: pd.DataFrame, ratios: dict[str, float], measures: list[Measure]
    ) -> Block:
        """Make a block with a row for each method, at its mask ratio.

        Args:
            title: above the block.
            frame: the cells.
            ratios: method -> its mask ratio.
            measures: the columns of numbers.

        Returns:
            The block.
        """
        keys = {method: (self.label(method), _ratio(ratios.get(method))) for method in self.methods}
        plain = {method: 0.0 for method in self.methods if not has_ratio(method)}
        at = frame["method"].map({**plain, **ratios})
        own = frame[frame["mask_ratio"] == at]
        labels = ["method", "mask ratio"]
        named = own["method"].map(keys)
        own = own.assign(**{name: named.str[place] for place, name in enumerate(labels)})
        return measured(title, own, list(keys.values()), labels, measures)

    def notes(self, chosen: str, ratio: float | None) -> tuple[str, ...]:
        """Explain the study's rows to a reader of the table.

        Args:
            chosen: the metric that decided the mask ratios, in words.
            ratio: the ratio that was given for all methods, or None.

        Returns:
            Sentences.
        """
        if ratio is not None:
            how = (
                f"All methods are shown at mask ratio {ratio:g}, which was given: this table chose "
                "nothing on the data shown."
            )
        else:
            plain = self.label("sft")
            tried = len({r for r in self.record.cells["mask_ratio"] if r})
            how = (
                f"Each method is shown at the mask ratio with its best mean {chosen}, out of "
                f"{tried}. The ratio was chosen on the very data it is shown on, which flatters it;"
                f" {plain} had no such choice. Ratio 0, which is {plain}, is not a "
                "candidate. Drawn with ratio=R, the table shows all methods at one ratio instead."
            )
        return (SPREAD, how, *self.unfinished())

    def unfinished(self) -> tuple[str, ...]:
        """Say how much of the study is missing.

        Returns:
            A sentence, or none if the study is finished.
        """
        spec = self.record.spec
        if not {"methods", "ratios", "seeds"} <= spec.keys():
            return ()
        kinds = sum(len(spec["ratios"]) if has_ratio(m) else 1 for m in spec["methods"])
        wanted = kinds * int(spec["seeds"])
        done = len(self.record.cells[["method", "mask_ratio", "seed"]].drop_duplicates())
        if done >= wanted:
            return ()
        return (
            f"The study is not finished: {done} of {wanted} cells. Only mask ratios with the most "
            "finished seeds compete.",
        )


def load_sweep(folder: str | Path) -> Sweep:
    """Read a mask-ratio sweep for a table.

    Returns:
        The sweep.

    Raises:
        RecordError: no mask-ratio sweep is there, or no cell of it is finished.
    """
    record = load_finite(folder)
    if record.kind != "mask-ratio-sweep" or record.cells.empty:
        raise RecordError(f"{record.path}: no mask-ratio sweep with finished cells")
    # The journal is in the order in which cells finished; means must repeat byte for byte.
    cells = record.cells.sort_values(["method", "mask_ratio", "seed"], kind="stable")
    frame = cells[cells["metric"].map(is_shown)]
    if frame.empty:
        raise RecordError(f"{record.path}: a sweep without a metric of its evaluation data")
    found = dict.fromkeys([*record.spec.get("methods", ()), *frame["method"]])
    printed = [name for name, facts in METHODS.items() if facts.printed]
    place = {name: at for at, name in enumerate(printed)}
    order = sorted(found, key=lambda one: (one != "ft", place.get(method_name(one), len(place))))
    return Sweep(record, frame, tuple(order))


def told_apart(sweeps: Sequence[Sweep]) -> list[str]:
    """Name the sweeps of a table, where two are of trainings on the same data.

    Args:
        sweeps: of the table.

    Returns:
        ` (FOLDER)` for each that shares its data with another one; else nothing.
    """
    often = Counter(sweep.trained_on for sweep in sweeps)
    return [
        f" ({sweep.record.path.name})" if often[sweep.trained_on] > 1 else "" for sweep in sweeps
    ]


def measure(metric: str, head: str = "", own: Mapping[str, Better] | None = None) -> Measure:
    """Say how a metric is shown: a fraction in per cent, all else with four decimal places.

    Args:
        metric: as the records name it.
        head: of its column; by default the metric's label with its unit.
        own: directions of metrics that the study's records state.

    Returns:
        The column.
    """
    scale = scale_of(metric)
    return Measure(
        metric,
        head or axis_label(metric),
        scale=scale,
        digits=1 if scale == 100 else 4,
        better=better_of(metric, own),
    )


def in_words(metric: str) -> str:
    """Write a metric's name for a sentence.

    Args:
        metric: as the records name it.

    Returns:
        Its words.
    """
    return short_name(metric).replace("_", " ")


def best_ratio(
    candidates: dict[float, list[float]], metric: str, own: Mapping[str, Better] | None = None
) -> float:
    """Choose the mask ratio with the best mean.

    Args:
        candidates: mask ratio -> its values, one for each seed.
        metric: as the records name it.
        own: directions of metrics that the study's records state.

    Returns:
        The ratio; the smaller of two that are equally good.

    Raises:
        RecordError: whether higher or lower values of the metric are better is unknown.
    """
    better = better_of(metric, own)
    if better is None:
        raise RecordError(
            f"{metric!r}: unknown whether higher or lower is better, so no ratio is the best; give "
            "ratio"
        )
    sign = 1 if is_lower_better(better) else -1
    return min(candidates, key=lambda ratio: (_rank(sign, candidates[ratio]), ratio))


def _rank(sign: int, values: Sequence[float]) -> float:
    mean = sign * sum(values) / len(values)
    return mean if isfinite(mean) else float("inf")


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:g}"
