"""What an inspection says of a delta: how large it is, how much of it is exactly zero, how few
entries hold most of it, and where it is largest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.catalog.layers import tensor_rank
from deltalens.errors import Lines, RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Heading, Table
from deltalens.reports.anatomy import NEXT, Anatomy, cast, changed, concentration, most, size

__all__ = ["HEADINGS", "LEVELS", "PARTS", "InspectionSummary", "summarize_inspection"]

PARTS = {"layer": "layer", "kind": "kind of projection"}
"""Level -> what one of its groups is."""
LEVELS = ("overall", "kind", "layer")
"""The levels that are shown unless others are named; `tensor` is the fourth."""
_ALL_LEVELS = (*LEVELS, "tensor")
_TITLES = {"overall": "", "kind": "by kind of projection"}
_ENTRIES = Heading("entries", "weights that a row describes", "count", "n")
_COLUMNS: Mapping[str, tuple[Heading, str]] = {
    heading.column: (heading, how)
    for heading, how in (
        (Heading("unchanged", "exactly as in the base", "% of entries", "unchanged"), "share"),
        (
            Heading(
                Lines("‖δ‖ /", "‖base‖"),
                "norm of the delta over that of the base's weights",
                "ratio",
                "relative_norm",
            ),
            "number",
        ),
        (
            Heading(
                Lines("99 % of", "|δ| below"),
                "99 % of the entries changed by less",
                "as weights",
                "quantile_0.99",
            ),
            "number",
        ),
        (
            Heading(
                "kurtosis",
                "3 if the delta is normal, more where a few entries are far larger than most",
                "no unit",
                "kurtosis",
            ),
            "plain",
        ),
        (
            Heading(
                Lines("energy in", "top 1 %"),
                "what the largest 1 % of entries hold",
                "% of ‖δ‖²",
                "energy_top_0.01",
            ),
            "share",
        ),
        (
            Heading(
                Lines("energy in", "top 10 %"),
                "what the largest 10 % of entries hold",
                "% of ‖δ‖²",
                "energy_top_0.1",
            ),
            "share",
        ),
        (
            Heading(
                Lines("lost by a", "bf16 cast"),
                "equal to the base's once both are cast to bf16; - where both are bf16",
                "% of changed entries",
                "vanishing_in_bf16",
            ),
            "share",
        ),
    )
}
"""Metric -> the head of its column, and how it is written."""
HEADINGS = (
    Heading("overall, kind, layer, tensor", "what a row describes", "name", "name"),
    _ENTRIES,
    *(heading for heading, _ in _COLUMNS.values()),
)
"""Of all tables."""


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
            A table for each level; the last has a legend.
        """
        shown = [*levels]
        for number, level in enumerate(shown, 1):
            yield Table(
                _TITLES.get(level, f"by {level}"),
                (level, _ENTRIES.head, *(heading.head for heading, _ in _COLUMNS.values())),
                tuple(map(_row, self.of_level(level))),
                tuple(heading.legend for heading in HEADINGS) if number == len(shown) else (),
            )

    def sentences(self) -> Iterator[str]:
        """Say how large the delta is, how it is distributed, and what follows.

        Returns:
            Sentences, as a person reads them.
        """
        (whole,) = self.of_level("overall")[:1] or [Anatomy("overall", "all", 0, {})]
        said = [changed(whole)]
        if whole.get("unchanged") != 1:
            said += [size(whole), *self.where(), concentration(whole), cast(whole), NEXT]
        yield from filter(None, said)

    def where(self) -> list[str]:
        """Say which layer, and which kind of projection, changed most.

        Returns:
            A sentence for each of the two that has something to compare.
        """
        said = (most(self.of_level(level), what) for level, what in PARTS.items())
        return [*filter(None, said)]

    def of_level(self, level: str) -> list[Anatomy]:
        """Choose the groups of a level.

        Args:
            level: `overall`, `kind`, `layer` or `tensor`.

        Returns:
            The groups, in the order of the model.
        """
        return [group for group in self.groups if group.level == level]

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
    # Early versions wrote layer 10 before layer 2.
    groups.sort(key=_place)
    facts = record.facts
    return InspectionSummary(
        str(facts.get("ft", "")),
        str(facts.get("base", "")),
        tuple(groups),
        [str(note) for note in facts.get("notes", [])],
    )


def _place(group: Anatomy) -> tuple[int, Any]:
    """Levels as the records have them; layers and tensors as the model has them."""
    level = _ALL_LEVELS.index(group.level) if group.level in _ALL_LEVELS else -1
    return level, tensor_rank(group.name) if group.level in ("layer", "tensor") else ()


def _row(group: Anatomy) -> tuple[str, ...]:
    cells = (_written(group.get(metric), how) for metric, (_, how) in _COLUMNS.items())
    return (group.name, f"{group.entries:,}", *cells)


def _written(value: float, how: str) -> str:
    if math.isnan(value):
        return "-"
    forms = {"share": f"{100 * value:.1f} %", "number": f"{value:.3g}", "plain": f"{value:.1f}"}
    return forms[how]
