"""Which blocks carry a fine-tune: what a layer sweep without training shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import Better, better_of, gain, leading_that_tell, no_direction
from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table
from deltalens.reports.wording import instead, name_of_blocks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GroupEffect", "LayerSummary", "MetricSummary", "summarize_layers"]

_NAMED = 3
"""Groups named in a sentence."""


@dataclass(frozen=True)
class GroupEffect:
    """The effect of one group of blocks on one metric."""

    size: int
    group: str
    delta: float
    """Its share of the whole delta's squared norm."""
    dropped: float | None
    """The metric without this group's delta; None if not measured yet."""
    kept: float | None
    """The metric with only this group's delta."""
    lost: float | None
    """How much worse the metric is than the fine-tune's when the group is dropped; None if it is
    not measured, not finite, or has no direction."""
    recovered: float | None
    """How much better it is than the base's when only the group is kept; None likewise."""


@dataclass(frozen=True)
class MetricSummary:
    """One metric of a layer sweep."""

    metric: str
    better: Better | None
    """Whether higher or lower values are better; None if unknown."""
    ft: float
    base: float
    gained: float | None
    """How much better the fine-tune is than the base; None if that cannot be said."""
    groups: tuple[GroupEffect, ...]

    def by_loss(self, size: int) -> list[GroupEffect]:
        """Rank the groups of a size by what dropping them costs.

        Args:
            size: blocks per group.

        Returns:
            The groups, the costliest first.
        """
        groups = [group for group in self.groups if group.size == size and group.lost is not None]
        return sorted(groups, key=lambda group: -(group.lost or 0.0))

    def by_recovery(self, size: int) -> list[GroupEffect]:
        """Rank the groups of a size by what each recovers alone.

        Args:
            size: blocks per group.

        Returns:
            The groups, the one that recovers most first.
        """
        groups = [
            group for group in self.groups if group.size == size and group.recovered is not None
        ]
        return sorted(groups, key=lambda group: -(group.recovered or 0.0))

    def share(self, amount: float | None) -> str:
        """Write an amount as a share of the gain from tuning.

        Args:
            amount: a difference of the metric; None if it was not measured.

        Returns:
            Per cent of the gain; the amount itself if nothing was gained, `-` for None.
        """
        if amount is None:
            return "-"
        gained = self.gained or 0.0
        return f"{100 * amount / gained:.0f} %" if gained > 0 else _number(amount)

    @property
    def gaps(self) -> list[str]:
        """The cells whose value is not finite, such as `blocks 4-7 dropped`."""
        done = {"dropped": "dropped", "kept": "kept alone"}
        gaps = [
            f"{name_of_blocks(group.group)} {said}"
            for group in self.groups
            for name, said in done.items()
            if not math.isfinite(getattr(group, name) or 0.0)
        ]
        return list(dict.fromkeys(gaps))


@dataclass(frozen=True)
class LayerSummary:
    """A layer sweep without training in numbers and sentences."""

    record: StudyRecord
    leading: tuple[MetricSummary, ...]
    """The leading metric of each data set: exact match, else agreement, else loss; but one that
    differs between fine-tune and base, if any does."""
    instead_of: Mapping[str, str]
    """Each of them -> the leading metric of its data set, nearly always itself."""
    metrics: tuple[MetricSummary, ...]

    @property
    def sizes(self) -> list[int]:
        """Blocks per group, in the order of the specification."""
        return [int(size) for size in self.record.spec["groups"]]

    def sentences(self) -> Iterator[str]:
        """Say which groups of blocks matter most, dropped or kept alone.

        Returns:
            Sentences, as a person reads them.
        """
        for metric in self.leading:
            name = metric.metric
            if (over := self.instead_of[name]) != name:
                value = next(other.ft for other in self.metrics if other.metric == over)
                yield instead(name, over, value, "for fine-tune and base alike")
            yield f"{name}: fine-tune {_number(metric.ft)}, base {_number(metric.base)}"
            if metric.better is None:
                yield no_direction(name)
                continue
            for model, value in (("fine-tune", metric.ft), ("base", metric.base)):
                if not math.isfinite(value):
                    yield f"{name} of the {model} is not finite, so nothing can be compared with it"
            for size in self.sizes:
                yield from _ranked(metric, size)
            if metric.gaps:
                yield f"values of {name} that are not finite are left out: {', '.join(metric.gaps)}"
        if self.record.facts["outside"]["entries"]:
            yield (
                f"tensors outside the blocks (embeddings, final norm, head) hold "
                f"{100 * self._outside:.1f} % of the squared delta: they keep it when a group is "
                "dropped, and lose it when only a group is kept"
            )

    @property
    def _outside(self) -> float:
        return _shares(self.record)[""]

    def tables(self) -> list[Table]:
        """Show what dropping each group costs and what each recovers alone, as shares of the gain
        from tuning.

        Returns:
            A table for each leading metric and group size.
        """
        columns = ("blocks", "share of ‖δ‖²", "dropped", "lost", "kept alone", "recovered")
        return [
            Table(
                f"{metric.metric}, groups of {size}",
                columns,
                tuple(
                    (
                        group.group,
                        f"{100 * group.delta:.1f} %",
                        _number(group.dropped),
                        metric.share(group.lost),
                        _number(group.kept),
                        metric.share(group.recovered),
                    )
                    for group in metric.groups
                    if group.size == size
                ),
            )
            for metric in self.leading
            for size in self.sizes
        ]

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            Every metric's groups and their ranking by both measures, as JSON values; numbers may be
            NaN.
        """
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
            "groups": [vars(group) for group in metric.groups],
            "most_lost": {str(n): [group.group for group in metric.by_loss(n)] for n in self.sizes},
            "most_recovered": {
                str(n): [group.group for group in metric.by_recovery(n)] for n in self.sizes
            },
        }


def _ranked(metric: MetricSummary, size: int) -> Iterator[str]:
    blocks = "single blocks" if size == 1 else f"groups of {size}"
    lost, recovered = metric.by_loss(size), metric.by_recovery(size)
    unit = " of the gain from tuning"
    if metric.gained is None or metric.gained <= 0:
        unit = ""
        if metric.gained is not None:
            yield (
                f"{blocks}: the fine-tune is not better than the base, so the numbers in brackets "
                "are differences of the metric"
            )
        elif lost or recovered:
            yield f"{blocks}: the numbers in brackets are differences of the metric"
    if lost and (lost[0].lost or 0.0) <= 0:
        yield f"{blocks}: dropping any of them makes {metric.metric} no worse"
    elif lost and len(lost) > 1 and lost[0].lost == lost[-1].lost:
        yield f"{blocks}: dropping any of them costs the same ({metric.share(lost[0].lost)}{unit})"
    elif lost:
        costs = [(group.group, metric.share(group.lost)) for group in lost]
        least = ""
        if len(costs) > _NAMED:
            least = f"; least: {name_of_blocks(costs[-1][0])} ({costs[-1][1]})"
        yield f"{blocks}: dropping {_ranking(costs, 'costs most', unit)}{least}"
    if recovered and len(recovered) > 1 and recovered[0].recovered == recovered[-1].recovered:
        share = metric.share(recovered[0].recovered)
        yield f"{blocks}: kept alone, each recovers the same ({share}{unit})"
    elif recovered:
        gains = [(group.group, metric.share(group.recovered)) for group in recovered]
        does = "recover most" if "-" in gains[0][0] else "recovers most"
        yield f"{blocks}: kept alone, {_ranking(gains, does, unit)}"


def _ranking(shares: Sequence[tuple[str, str]], does: str, unit: str) -> str:
    """`blocks 0-4 costs most (50 % of the gain from tuning), then block 5 (25 %)`."""
    (first, share), *others = shares[:_NAMED]
    then = ", ".join(f"{name_of_blocks(group)} ({share})" for group, share in others)
    return f"{name_of_blocks(first)} {does} ({share}{unit}){', then ' if then else ''}{then}"


def summarize_layers(record: StudyRecord) -> LayerSummary:
    """Summarize a layer sweep without training, finished or not.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: it is another kind of study, or has not measured the fine-tune and the base
            yet.
    """
    if record.kind != "layer-sweep" or record.spec.get("method") != "drop":
        raise RecordError(
            f"{record.path}: holds a study of kind {record.kind!r}, not a layer sweep without "
            "training"
        )
    names = list(dict.fromkeys(record.cells["metric"]))
    summaries = (_metric_summary(record, str(name)) for name in names)
    metrics = tuple(summary for summary in summaries if summary is not None)
    if not metrics:
        raise RecordError(f"{record.path}: the fine-tune and the base are not measured yet")
    by_name = {metric.metric: metric for metric in metrics}
    chosen = leading_that_tell(
        by_name, lambda name: by_name[name].gained != 0, record.facts.get("better")
    )
    return LayerSummary(record, tuple(by_name[name] for name in chosen), chosen, metrics)


def _metric_summary(record: StudyRecord, name: str) -> MetricSummary | None:
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
        """How much better one value is than the other."""
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
    groups = {
        (int(size), str(group))
        for size, group in zip(frame["size"], frame["group"], strict=True)
        if group
    }
    return sorted(groups, key=lambda group: (group[0], _numbers(group[1])[0]))


def _numbers(group: str) -> range:
    first, _, last = group.partition("-")
    return range(int(first), int(last or first) + 1)


def _shares(record: StudyRecord) -> dict[str, float]:
    """Block -> its share of the delta's squared norm; under "" what is outside the blocks."""
    parts = {**record.facts["blocks"], "": record.facts["outside"]}
    whole = sum(part["squares"] for part in parts.values())
    return {name: part["squares"] / whole for name, part in parts.items()}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}"
