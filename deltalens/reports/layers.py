"""Which blocks carry a fine-tune: what a sweep over layers found, in sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import Better, better_of, gain, leading, no_direction
from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GroupEffect", "LayerSummary", "summarize_layers"]

_NAMED = 3
"""Groups named in a sentence."""


@dataclass(frozen=True)
class GroupEffect:
    """What one group of blocks does to one metric."""

    size: int
    group: str
    delta: float
    """Its share of the whole delta's squared norm."""
    dropped: float | None
    """The metric with this group's delta put back; None if not measured yet."""
    kept: float | None
    """The metric with only this group's delta."""
    lost: float | None
    """By how much the metric is worse than the fine-tune's when the group is dropped; None where
    that cannot be said: not measured, not finite, or no direction."""
    recovered: float | None
    """By how much it is better than the base's when only the group is kept."""


@dataclass(frozen=True)
class MetricSummary:
    """One metric of a sweep."""

    metric: str
    better: Better | None
    """Which way it is better; None where nobody has said so."""
    ft: float
    base: float
    gained: float | None
    """By how much the fine-tune is better than the base; None where that cannot be said."""
    groups: tuple[GroupEffect, ...]

    def by_loss(self, size: int) -> list[GroupEffect]:
        """The groups of a size, the one first whose drop costs most."""
        found = [one for one in self.groups if one.size == size and one.lost is not None]
        return sorted(found, key=lambda one: -(one.lost or 0.0))

    def by_recovery(self, size: int) -> list[GroupEffect]:
        """The groups of a size, the one first that alone recovers most."""
        found = [one for one in self.groups if one.size == size and one.recovered is not None]
        return sorted(found, key=lambda one: -(one.recovered or 0.0))

    def share(self, amount: float | None) -> str:
        """Of what tuning gained, in percent; nothing where it gained nothing."""
        if amount is None:
            return "-"
        gained = self.gained or 0.0
        return f"{100 * amount / gained:.0f} %" if gained > 0 else _number(amount)

    @property
    def gaps(self) -> list[str]:
        """What is not finite, by name: what was done to which blocks."""
        done = {"dropped": "dropped", "kept": "kept alone"}
        found = [
            f"{one.group} {said}"
            for one in self.groups
            for name, said in done.items()
            if not math.isfinite(getattr(one, name) or 0.0)
        ]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class LayerSummary:
    """The answer of a sweep over layers without training."""

    record: StudyRecord
    leading: tuple[MetricSummary, ...]
    """Of each data set the leading metric: exact match, else agreement, else loss."""
    metrics: tuple[MetricSummary, ...]

    @property
    def sizes(self) -> list[int]:
        """Of the groups, as asked."""
        return [int(size) for size in self.record.spec["groups"]]

    def sentences(self) -> Iterator[str]:
        """The summary as a person reads it."""
        for metric in self.leading:
            name = metric.metric
            yield f"{name}: {_number(metric.ft)} fine-tuned, {_number(metric.base)} base"
            if metric.better is None:
                yield no_direction(name)
                continue
            for model, value in (("fine-tune", metric.ft), ("base", metric.base)):
                if not math.isfinite(value):
                    yield f"{name} of the {model} is not finite: nothing is compared with it"
            for size in self.sizes:
                yield from _ranked(metric, size)
            if metric.gaps:
                yield f"{name} is not finite, and left out: {', '.join(metric.gaps)}"
        if self.record.facts["outside"]["entries"]:
            yield (
                "what is in no block (embeddings, last norm, head) keeps its delta when a group is "
                "dropped, and is the base's when only a group is kept: "
                f"{100 * self._outside:.1f} % of the squared delta"
            )

    @property
    def _outside(self) -> float:
        return _shares(self.record)[""]

    def tables(self) -> list[Table]:
        """For each leading metric and size: the groups in order, what dropping each costs, and what
        each alone recovers, as shares of what tuning gained."""
        columns = ("blocks", "of the delta", "dropped", "lost", "kept alone", "recovered")
        return [
            Table(
                f"{metric.metric}, groups of {size}",
                columns,
                tuple(
                    (
                        one.group,
                        f"{100 * one.delta:.1f} %",
                        _number(one.dropped),
                        metric.share(one.lost),
                        _number(one.kept),
                        metric.share(one.recovered),
                    )
                    for one in metric.groups
                    if one.size == size
                ),
            )
            for metric in self.leading
            for size in self.sizes
        ]

    def as_json(self) -> dict[str, Any]:
        """The summary for scripts: each metric's groups, and their ranking by both measures."""
        return {
            "study": str(self.record.path),
            "leading": [metric.metric for metric in self.leading],
            "outside_blocks": self._outside,
            "metrics": {metric.metric: self._json_of(metric) for metric in self.metrics},
            "notes": self.record.facts.get("notes", []),
        }

    def _json_of(self, metric: MetricSummary) -> dict[str, Any]:
        return {
            "better": metric.better,
            "fine_tuned": metric.ft,
            "base": metric.base,
            "groups": [vars(one) for one in metric.groups],
            "most_lost": {str(n): [one.group for one in metric.by_loss(n)] for n in self.sizes},
            "most_recovered": {
                str(n): [one.group for one in metric.by_recovery(n)] for n in self.sizes
            },
        }


def _ranked(metric: MetricSummary, size: int) -> Iterator[str]:
    blocks = "single blocks" if size == 1 else f"groups of {size}"
    lost, recovered = metric.by_loss(size), metric.by_recovery(size)
    whole = "of what tuning gained, "
    if metric.gained is None or metric.gained <= 0:
        whole = ""
        if metric.gained is not None:
            yield f"{blocks}: tuning gained nothing on this metric; the figures are differences"
        elif lost or recovered:
            yield f"{blocks}: the figures are differences"
    if lost:
        named = ", ".join(f"{one.group} ({metric.share(one.lost)})" for one in lost[:_NAMED])
        least = f"; least: {lost[-1].group} ({metric.share(lost[-1].lost)})"
        yield (
            f"{blocks}: {whole}dropping loses most in {named}{least if len(lost) > _NAMED else ''}"
        )
    if recovered:
        named = ", ".join(
            f"{one.group} ({metric.share(one.recovered)})" for one in recovered[:_NAMED]
        )
        yield f"{blocks}: alone, most is recovered by {named}"


def summarize_layers(record: StudyRecord) -> LayerSummary:
    """Summarize a sweep over layers without training, also one that is not finished.

    Raises:
        RecordError: it is another kind of study, or has not measured the fine-tune and the base.
    """
    if record.kind != "layer-sweep" or record.spec.get("method") != "drop":
        raise RecordError(f"{record.path}: a {record.kind}, not a sweep over layers by drop")
    names = list(dict.fromkeys(record.cells["metric"]))
    metrics = tuple(found for name in names if (found := _of_metric(record, str(name))) is not None)
    if not metrics:
        raise RecordError(f"{record.path}: too few cells are finished for a summary")
    return LayerSummary(record, _leading(metrics, record.facts.get("better")), metrics)


def _leading(
    metrics: Sequence[MetricSummary], own: Mapping[str, Better] | None
) -> tuple[MetricSummary, ...]:
    sets: dict[str, dict[str, MetricSummary]] = {}
    for metric in metrics:
        sets.setdefault(metric.metric.rpartition("/")[0], {})[metric.metric] = metric
    return tuple(held[name] for held in sets.values() if (name := leading(held, own)) is not None)


def _of_metric(record: StudyRecord, name: str) -> MetricSummary | None:
    frame = record.cells[record.cells["metric"] == name]
    values = {
        (str(method), str(group)): float(value)
        for method, group, value in zip(
            frame["method"], frame["group"], frame["value"], strict=True
        )
    }
    if ("ft", "") not in values or ("base", "") not in values:
        return None
    ft, base = values["ft", ""], values["base", ""]
    better = better_of(name, record.facts.get("better"))

    def gained(after: float | None, before: float | None) -> float | None:
        """By how much one is better than the other."""
        if better is None or after is None or before is None:
            return None
        by = gain(after, before, better)
        return by if math.isfinite(by) else None

    shares = _shares(record)
    groups = []
    for size, group in _groups(frame):
        dropped, kept = values.get(("drop", group)), values.get(("keep", group))
        groups.append(
            GroupEffect(
                size,
                group,
                sum(shares.get(str(number), 0.0) for number in _numbers(group)),
                dropped,
                kept,
                gained(ft, dropped),
                gained(kept, base),
            )
        )
    return MetricSummary(name, better, ft, base, gained(ft, base), tuple(groups))


def _groups(frame: pd.DataFrame) -> list[tuple[int, str]]:
    found = {
        (int(size), str(group))
        for size, group in zip(frame["size"], frame["group"], strict=True)
        if group
    }
    return sorted(found, key=lambda one: (one[0], _numbers(one[1])[0]))


def _numbers(group: str) -> range:
    first, _, last = group.partition("-")
    return range(int(first), int(last or first) + 1)


def _shares(record: StudyRecord) -> dict[str, float]:
    """Of the delta's squared norm: each block's, and under no name what is in none."""
    parts = {**record.facts["blocks"], "": record.facts["outside"]}
    whole = sum(part["squares"] for part in parts.values())
    return {name: part["squares"] / whole for name, part in parts.items()}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}"
