"""Comparisons of methods on a fine-tune as tables: what MFT's Tables 1, 2, 3, 5 and 6 share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from deltalens.catalog.methods import facts_of
from deltalens.errors import Lines, RecordError
from deltalens.figures.mft_studies import MftStudy, in_order, label
from deltalens.figures.sweep_tables import measure
from deltalens.figures.tables import Block, Measure, measured

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Column",
    "Line",
    "block",
    "masked",
    "one_a_domain",
    "own_columns",
    "spec_methods",
    "study_notes",
]

_EARLIER = "0.2"
"""What the first version recorded as the mask ratio, given or not."""


class Column(NamedTuple):
    """A metric on a data set."""

    data: str
    name: str
    domain: str = ""
    """Only of models that were trained on this one."""

    @property
    def measure(self) -> Measure:
        """How it is shown."""
        shown, told = measure(self.name), self.data.startswith(self.domain)
        where = self.data if told else f"{self.domain} → {self.data}"
        return replace(shown, name="/".join(self), head=Lines(where, shown.head))


class Line(NamedTuple):
    """A row of a table."""

    labels: tuple[str, ...]
    method: str
    studies: Sequence[MftStudy]
    """In each column stands the first of them that has a number for it."""

    def cells(self, column: Column) -> pd.DataFrame | None:
        """Find the cells of a column.

        Args:
            column: a metric on a data set.

        Returns:
            A row for each seed; None if no study has a number for it.
        """
        for study in self.studies:
            held = study.of(column.data, column.name)
            own = held[held["method"] == self.method]
            if not own.empty and column.domain in ("", study.domain):
                return own
        return None


def block(
    title: str,
    columns: Sequence[Column],
    lines: Sequence[Line],
    labels: Sequence[str],
    grouped: int = 0,
) -> Block:
    """Make a block of a table: means over seeds.

    Args:
        title: of the block.
        columns: a metric on a data set each.
        lines: its rows.
        labels: heads of the rows' labels.
        grouped: how many labels are printed once for equal neighbors.

    Returns:
        The block.
    """
    import pandas as pd

    parts = [pd.DataFrame(columns=[*labels, "metric", "value", "n"])]
    for line in lines:
        for column in columns:
            own = line.cells(column)
            if own is not None:
                named = dict(zip(labels, line.labels, strict=True), metric=column.measure.name)
                parts.append(own[["value", "n"]].assign(**named))
    frame = pd.concat(parts[1:] or parts, ignore_index=True)
    rows = [line.labels for line in lines]
    return measured(title, frame, rows, labels, [column.measure for column in columns], grouped)


def own_columns(studies: Sequence[MftStudy]) -> list[Column]:
    """List the columns of studies on the data of their own domains.

    Args:
        studies: the studies.

    Returns:
        A column for each metric on each such data set.
    """
    return list(
        dict.fromkeys(
            Column(data, metric, study.domain)
            for study in studies
            for data, metrics in study.own_sets.items()
            for metric in metrics
        )
    )


def spec_methods(studies: Sequence[MftStudy]) -> list[str]:
    """List the methods of several studies.

    Args:
        studies: the studies.

    Returns:
        The methods of their specifications and cells, in the paper's order.
    """
    return in_order([method for study in studies for method in study.methods])


def one_a_domain(studies: Sequence[MftStudy]) -> None:
    """Refuse two studies that would fill the same cells of a table.

    Args:
        studies: the studies.

    Raises:
        RecordError: two of them were trained on the same domain.
    """
    seen: dict[str, MftStudy] = {}
    for study in studies:
        other = seen.setdefault(study.domain, study)
        if other is not study:
            raise RecordError(
                f"{study.path}: a second comparison of the domain {study.domain!r} (trained on "
                f"{study.trained_on}) beside {other.path}; draw only one of them"
            )


def study_notes(studies: Sequence[MftStudy]) -> tuple[str, ...]:
    """Say what each study was trained on and masked, and what of it is missing.

    Args:
        studies: the studies.

    Returns:
        Sentences.
    """
    notes = []
    for study in studies:
        spec = study.record.spec
        rows = spec.get("data") or []
        said = [f"trained on {study.trained_on}" + (f" ({rows[1]} rows)" if len(rows) > 1 else "")]
        if (blocks := study.record.setting("blocks", "mft")) is not None:
            said.append(f"masked blocks: {blocks}")
        said.append(masked(study))
        notes.append(f"{study.domain}: {', '.join(one for one in said if one)}.")
        missing = _missing(study)
        if missing:
            notes.append(f"{study.domain} is not finished: {', '.join(missing)}.")
    return tuple(notes)


def masked(study: MftStudy) -> str:
    """Put the rule by which weights were removed into words.

    Args:
        study: the study.

    Returns:
        `mask ratio 0.1`, `threshold -0.035`, ...; empty if the study does not say.
    """
    threshold = study.record.setting("threshold", "mft")
    if threshold is not None:
        return f"threshold {threshold:g}"
    ratio = study.record.setting("mask_ratio", "mft")
    if "settings" not in study.record.spec and ratio == _EARLIER:
        return (
            "mask ratio 0.2, or 0.1 if none was given: the study's version did not tell them apart"
        )
    if isinstance(ratio, str) and "=" in ratio:
        parts = [part.rpartition("=") for part in ratio.split(",")]
        ratio = {kind: one for kind, _, one in parts}
    if isinstance(ratio, dict):
        return "mask ratio " + " and ".join(
            f"{one} ({kind})" if kind else one for kind, one in ratio.items()
        )
    return "" if ratio is None else f"mask ratio {ratio}"


def _missing(study: MftStudy) -> list[str]:
    """Methods without a number, and those of which not all seeds are trained."""
    wanted = study.record.spec.get("seeds")
    found = []
    for method in study.methods:
        seeds = study.frame[study.frame["method"] == method]["seed"].nunique()
        if not seeds:
            found.append(f"nothing of {label(method)} yet")
        elif _trains(method) and isinstance(wanted, int) and seeds < wanted:
            found.append(f"{seeds} of {wanted} seeds of {label(method)}")
    return found


def _trains(method: str) -> bool:
    facts = facts_of(method)
    return facts is not None and facts.trains
