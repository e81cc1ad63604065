"""What an inspection says of a delta: how large it is, how much of it is exactly zero, and how few
entries hold most of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.errors import Lines, RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table

__all__ = ["LEVELS", "Anatomy", "InspectionSummary", "summarize_inspection"]

LEVELS = ("overall", "kind", "layer")
"""The levels that are shown unless others are named; `tensor` is the fourth."""
_TITLES = {"overall": "", "kind": "by kind of projection"}
_COLUMNS: Mapping[str, tuple[str, str]] = {
    "unchanged": ("unchanged", "share"),
    "relative_norm": (Lines("‖δ‖ /", "‖base‖"), "number"),
    "quantile_0.99": (Lines("99 % of", "|δ| below"), "number"),
    "kurtosis": ("kurtosis", "plain"),
    "energy_top_0.01": (Lines("energy in", "top 1 %"), "share"),
    "energy_top_0.1": (Lines("energy in", "top 10 %"), "share"),
    "vanishing_in_bf16": (Lines("lost by a", "bf16 cast"), "share"),
}
"""Metric -> the head of its column, and how it is written."""


@dataclass(frozen=True)
class Anatomy:
    """The anatomy of one tensor's delta, or of several together."""

    level: str
    """`overall`, `kind` (of projection), `layer` or `tensor`."""
    name: str
    entries: int
    metrics: Mapping[str, float]
    """As the records name them: `unchanged`, `relative_norm`, `quantile_0.99`, ..."""

    def get(self, metric: str) -> float:
        """Look up a metric.

        Args:
            metric: as the records name it.

        Returns:
            Its value; NaN if it was not measured.
        """
        return self.metrics.get(metric, math.nan)


@dataclass(frozen=True)
class InspectionSummary:
    """An inspection in numbers and sentences."""

    ft: str
    """Path of the fine-tuned checkpoint."""
    base: str
    groups: tuple[Anatomy, ...]
    notes: Sequence[str] = ()
    """About how the two checkpoints were paired."""
    kept: Mapping[str, str] | None = None
    """Tensor -> why it was left out; None if only the records are at hand."""

    def tables(self, levels: Iterable[str] = LEVELS) -> Iterator[Table]:
        """Show the groups of each level.

        Args:
            levels: `overall`, `kind`, `layer` or `tensor`.

        Returns:
            A table for each level.
        """
        for level in levels:
            yield Table(
                _TITLES.get(level, f"by {level}"),
                (level, "entries", *(head for head, _ in _COLUMNS.values())),
                tuple(_row(group) for group in self.groups if group.level == level),
            )

    def sentences(self) -> Iterator[str]:
        """Say how large the delta is, and how it is distributed.

        Returns:
            Sentences, as a person reads them.
        """
        for group in self.groups:
            if group.level == "overall":
                yield from _overall(group)
        yield from _by_layer([group for group in self.groups if group.level == "layer"])

    def as_json(self) -> dict[str, Any]:
        """Give all numbers to a script.

        Returns:
            Both paths, every group of every level, and notes, as JSON values; numbers may be NaN.
        """
        groups = [
            {"level": group.level, "name": group.name, "entries": float(group.entries)}
            | dict(group.metrics)
            for group in self.groups
        ]
        said = {"ft": self.ft, "base": self.base, "groups": groups, "notes": [*self.notes]}
        return said if self.kept is None else {**said, "kept": dict(self.kept)}


def summarize_inspection(record: StudyRecord) -> InspectionSummary:
    """Summarize a saved inspection.

    Args:
        record: of an inspection.

    Returns:
        Its numbers and sentences.

    Raises:
        RecordError: nothing is recorded in it.
    """
    if record.cells.empty:
        raise RecordError(f"{record.path}: no inspection with finished cells")
    groups = []
    for (level, name), cells in record.cells.groupby(["level", "name"], sort=False):
        metrics = dict(zip(cells["metric"].astype(str), cells["value"].astype(float), strict=True))
        groups.append(Anatomy(str(level), str(name), int(cells["n"].max()), metrics))
    facts = record.facts
    return InspectionSummary(
        str(facts.get("ft", "")),
        str(facts.get("base", "")),
        tuple(groups),
        [str(note) for note in facts.get("notes", [])],
    )


def _row(group: Anatomy) -> tuple[str, ...]:
    cells = (_written(group.get(metric), how) for metric, (_, how) in _COLUMNS.items())
    return (group.name, f"{group.entries:,}", *cells)


def _written(value: float, how: str) -> str:
    if math.isnan(value):
        return "-"
    forms = {"share": f"{100 * value:.1f} %", "number": f"{value:.3g}", "plain": f"{value:.1f}"}
    return forms[how]


def _overall(group: Anatomy) -> Iterator[str]:
    unchanged, norm = group.get("unchanged"), group.get("relative_norm")
    if not math.isnan(unchanged):
        yield f"{100 * unchanged:.2f} % of {group.entries:,} entries are exactly unchanged"
    if not math.isnan(norm):
        yield f"the delta's norm is {norm:.3g} times that of the base weights"
    first, tenth = group.get("energy_top_0.01"), group.get("energy_top_0.1")
    if not math.isnan(first) and not math.isnan(tenth):
        yield (
            f"the largest 1 % of entries hold {100 * first:.1f} % of the delta's squared norm, "
            f"the largest 10 % hold {100 * tenth:.1f} %"
        )
    lost = group.get("vanishing_in_bf16")
    if not math.isnan(lost):
        yield f"casting both models to bf16 would lose {100 * lost:.1f} % of the changed entries"


def _by_layer(groups: list[Anatomy]) -> Iterator[str]:
    norms = {group.name: group.get("relative_norm") for group in groups}
    norms = {name: norm for name, norm in norms.items() if not math.isnan(norm)}
    if len(norms) > 1:
        most, least = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
        yield (
            f"relative to its weights, {most} changed most (‖δ‖ / ‖base‖ = {norms[most]:.3g}) and "
            f"{least} least ({norms[least]:.3g})"
        )
