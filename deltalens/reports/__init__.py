"""Summaries of studies and runs, in sentences and tables, made from their records alone. No torch
here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from deltalens.catalog.plugins import load_code
from deltalens.catalog.studies import study_of
from deltalens.errors import RecordError

if TYPE_CHECKING:
    from deltalens.io.records import StudyRecord
    from deltalens.io.tables import Table

__all__ = ["Summary", "summarize"]


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
    summary: Summary = load_code(study.summary)(record)
    return summary
