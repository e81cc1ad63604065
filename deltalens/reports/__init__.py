"""Summaries of studies and runs, in sentences and tables, made from their records alone. No torch
here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from deltalens.catalog.plugins import load_code
from deltalens.catalog.studies import study_of
from deltalens.errors import RecordError
from deltalens.io.records import TASK_COSTS

if TYPE_CHECKING:
    from deltalens.io.records import StudyRecord
    from deltalens.io.tables import Table

__all__ = ["Summary", "failed_cells", "summarize", "task_costs"]


class Summary(Protocol):
    """The summary of a study of any kind."""

    def tables(self) -> Iterable[Table]:
        """Show the numbers.

        Returns:
            Tables of text, for the terminal.
        """
        ...

    def sentences(self) -> Iterable[str]:
        """Say what the study shows.

        Returns:
            Sentences, as a person reads them.
        """
        ...

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            JSON values; numbers may be NaN.
        """
        ...


def summarize(record: StudyRecord) -> Summary:
    """Summarize a study of any kind, finished or not.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: no summary exists for its kind, or too little is measured yet.
    """
    study = study_of(record.spec)
    if study is None or not study.summary:
        raise RecordError(f"{record.path}: no summary exists for a study of kind {record.kind!r}")
    try:
        summary: Summary = load_code(study.summary)(record)
    except RecordError as error:
        if not record.failures:
            raise
        raise RecordError(f"{error}; {'; '.join(failed_cells(record))}") from error
    return summary


def task_costs(record: StudyRecord) -> list[str]:
    """Say what standard tasks took beside the model.

    Args:
        record: of the study.

    Returns:
        A sentence; nothing if there are no such tasks.
    """
    costs = record.facts.get(TASK_COSTS)
    if costs is None:
        return []
    built = (
        f"standard tasks: {costs['requests']:,} requests were built once, in "
        f"{costs['building_seconds']:.1f} s"
    )
    if "cells" not in costs:
        return [f"{built}, in each process"]
    return [
        f"{built}; beside the model, the harness took {costs['harness_seconds']:.2f} s a cell "
        f"(median of {costs['cells']:,})"
    ]


def failed_cells(record: StudyRecord) -> list[str]:
    """Say which cells failed.

    Args:
        record: of the study.

    Returns:
        How many failed, then a sentence for each reason; nothing if none failed.
    """
    if not record.failures:
        return []
    by_reason: dict[str, list[str]] = {}
    for failure in record.failures:
        setting = ", ".join(f"{name} {value}" for name, value in failure.setting.items())
        by_reason.setdefault(str(failure.reason), []).append(setting)
    cells = "1 cell" if len(record.failures) == 1 else f"{len(record.failures)} cells"
    return [
        f"{cells} failed; the same call measures them again",
        *(
            f"failed: {settings[0]}{_and_more(len(settings) - 1)}: {reason}"
            for reason, settings in by_reason.items()
        ),
    ]


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""
