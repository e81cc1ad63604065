"""What GMT's Tables 1, 2 and 4 take from a mask-ratio sweep: its data sets, its measures, and
a mask ratio for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.catalog.methods import METHODS, has_ratio
from deltalens.catalog.metrics import (
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

__all__ = ["Sweep", "best_ratio", "in_words", "load_sweep", "measure"]

_ROWS = {name: one.printed for name, one in METHODS.items() if one.printed}
"""Methods in the paper's order, by its names."""


@dataclass(frozen=True)
class Sweep:
    """A mask-ratio sweep, finished or not."""

    record: StudyRecord
    frame: pd.DataFrame
    """Its cells without the training loss, and without perplexity, which is the loss again."""
    methods: tuple[str, ...]
    """All that were asked for, in the paper's order."""

    @property
    def sets(self) -> dict[str, list[str]]:
        """Data set -> its metrics, the leading one first; a single set has the name that the study
        was asked with."""
        found: dict[str, list[str]] = {}
        for metric in dict.fromkeys(self.frame["metric"]):
            found.setdefault(metric.rpartition("/")[0], []).append(metric)
        spec = self.record.spec.get("eval_data") or [["the study's data"]]
        return {name or str(spec[0][0]): metrics for name, metrics in found.items()}

    def label(self, method: str) -> str:
        """A method's name in the paper; plain training's is that of what it learns by."""
        return self.record.plain.upper() if method == "sft" else _ROWS.get(method, method)

    def candidates(self, method: str, metric: str, *, plain: bool) -> dict[float, list[float]]:
        """Mask ratio -> its value with each seed: the ratios of which the most seeds have finished.

        Args:
            method: one that has a mask ratio.
            metric: as the study names it.
            plain: ratio 0, which is plain fine-tuning, is among them.
        """
        part = self.frame[(self.frame["method"] == method) & (self.frame["metric"] == metric)]
        held: dict[float, list[float]] = {}
        for ratio, value in zip(part["mask_ratio"], part["value"], strict=True):
            if ratio or plain:
                held.setdefault(float(ratio), []).append(float(value))
        most = max(map(len, held.values()), default=0)
        return {ratio: values for ratio, values in held.items() if len(values) == most}

    def chosen(self, metric: str, ratio: float | None) -> dict[str, float]:
        """Method -> the mask ratio at which it is shown: the one named, or that of the best mean.

        Raises:
            RecordError: the study has no such ratio.
        """
        if ratio is not None:
            there = sorted(self.record.cells["mask_ratio"].unique())
            if ratio not in there:
                shown = ", ".join(f"{one:g}" for one in there)
                raise RecordError(f"{self.record.path}: no mask ratio {ratio:g}; it has {shown}")
        found: dict[str, float] = {}
        for method in self.methods:
            if not has_ratio(method):
                continue
            held = self.candidates(method, metric, plain=False)
            if ratio is not None or held:
                found[method] = ratio if ratio is not None else best_ratio(held, metric)
        return found

    def block(
        self, title: str, frame: pd.DataFrame, ratios: dict[str, float], measures: list[Measure]
    ) -> Block:
        """A row for each method, at its ratio."""
        keys = {method: (self.label(method), _ratio(ratios.get(method))) for method in self.methods}
        plain = {method: 0.0 for method in self.methods if not has_ratio(method)}
        at = frame["method"].map({**plain, **ratios})
        own = frame[frame["mask_ratio"] == at]
        labels = ["method", "mask ratio"]
        named = own["method"].map(keys)
        own = own.assign(**{name: named.str[place] for place, name in enumerate(labels)})
        return measured(title, own, list(keys.values()), labels, measures)

    def notes(self, chosen: str, ratio: float | None) -> tuple[str, ...]:
        """What a reader of the table has to know about the study's rows.

        Args:
            chosen: by what the ratios are the best: a metric, in words.
            ratio: the one named, if one was.
        """
        if ratio is not None:
            how = (
                f"The mask ratio, {ratio:g}, was named for all methods: this table chose nothing "
                "on the data shown."
            )
        else:
            plain = self.label("sft")
            tried = len({r for r in self.record.cells["mask_ratio"] if r})
            how = (
                f"A method stands at the mask ratio of its best mean {chosen}, one out of {tried} "
                "that were tried: chosen on the very data it is shown on, so it is flattered; "
                f"{plain} had no such choice. Ratio 0, which is {plain}, is no candidate. "
                "draw(folder, ratio=R) shows all methods at one ratio, named beforehand."
            )
        return (SPREAD, how, *self.unfinished())

    def unfinished(self) -> tuple[str, ...]:
        """A sentence, if cells are missing."""
        spec = self.record.spec
        if not {"methods", "ratios", "seeds"} <= spec.keys():
            return ()
        kinds = sum(len(spec["ratios"]) if has_ratio(m) else 1 for m in spec["methods"])
        wanted = kinds * int(spec["seeds"])
        done = len(self.record.cells[["method", "mask_ratio", "seed"]].drop_duplicates())
        if done >= wanted:
            return ()
        return (
            f"The study is not finished: {done} of {wanted} cells. Of a method's mask ratios, "
            "those compete of which the most seeds have finished.",
        )


def load_sweep(folder: str | Path) -> Sweep:
    """Read a sweep for a table.

    Raises:
        RecordError: no mask-ratio sweep there, or nothing measured in it.
    """
    record = load_finite(folder)
    if record.kind != "mask-ratio-sweep" or record.cells.empty:
        raise RecordError(f"{record.path}: no mask-ratio sweep with finished cells")
    # The journal has the cells as they finished; means are to repeat byte for byte.
    cells = record.cells.sort_values(["method", "mask_ratio", "seed"], kind="stable")
    frame = cells[cells["metric"].map(is_shown)]
    if frame.empty:
        raise RecordError(f"{record.path}: a sweep without a metric of its evaluation data")
    found = dict.fromkeys([*record.spec.get("methods", ()), *frame["method"]])
    order = [*(m for m in _ROWS if m in found), *(m for m in found if m not in _ROWS)]
    return Sweep(record, frame, tuple(order))


def measure(metric: str, head: str = "") -> Measure:
    """How a metric is shown: a fraction in per cent, a loss with four digits."""
    scale = scale_of(metric)
    return Measure(
        metric,
        head or axis_label(metric),
        scale=scale,
        digits=1 if scale == 100 else 4,
        better=better_of(metric),
    )


def in_words(metric: str) -> str:
    """A metric's name in a sentence."""
    return short_name(metric).replace("_", " ")


def best_ratio(held: dict[float, list[float]], metric: str) -> float:
    """The mask ratio of the best mean; the smaller of two that are equal.

    Raises:
        RecordError: nobody has said which way the metric is better.
    """
    better = better_of(metric)
    if better is None:
        raise RecordError(
            f"{metric!r}: which way is better is not known; name the ratio: draw(folder, ratio=R)"
        )
    sign = 1 if is_lower_better(better) else -1
    return min(held, key=lambda ratio: (_rank(sign, held[ratio]), ratio))


def _rank(sign: int, values: Sequence[float]) -> float:
    mean = sign * sum(values) / len(values)
    return mean if isfinite(mean) else float("inf")


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:g}"
