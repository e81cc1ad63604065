"""What studies found, in sentences and tables, from their records alone. No torch here."""

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
    """The answer of a study."""

    def tables(self) -> Iterable[Table]:
        """For the terminal."""
        ...

    def sentences(self) -> Iterable[str]:
        """As a person reads it."""
        ...

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        ...


def summarize(record: StudyRecord) -> Summary:
    """What a study of any kind found.

    Raises:
        RecordError: of its kind nothing is said, or nothing is measured yet.
    """
    study = study_of(record.spec)
    if study is None or not study.summary:
        raise RecordError(f"{record.path}: nothing is said of a study of kind {record.kind!r}")
    found: Summary = load_code(study.summary)(record)
    return found
