"""What an inspection answers: how much of a fine-tune is no change at all, and where its changes
are."""

from __future__ import annotations

from collections.abc import Iterator

from deltalens.io.records import StudyRecord
from deltalens.reports.anatomy import Anatomy, changed, concentration, extremes, most
from deltalens.reports.answers.answer import Answer
from deltalens.reports.inspect import PARTS, summarize_inspection
from deltalens.reports.wording import percent

__all__ = ["anatomy_answers"]


def anatomy_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer how much is unchanged, and which layer and kind of projection changed most.

    Args:
        record: of an inspection.

    Returns:
        The answers.

    Raises:
        RecordError: nothing is recorded in it.
    """
    summary = summarize_inspection(record)
    for whole in summary.of_level("overall"):
        if said := changed(whole):
            yield _unchanged(whole, said)
    for level, what in PARTS.items():
        groups = summary.of_level(level)
        if found := extremes(groups):
            yield _most(groups, what, found)


def _unchanged(whole: Anatomy, said: str) -> Answer:
    counted = f"exact: counted over all {whole.entries:,} entries; no model was run"
    both = " ".join(filter(None, (said, concentration(whole))))
    return Answer("redundant", percent(whole.get("unchanged")), both, counted)


def _most(groups: list[Anatomy], what: str, found: tuple[float, float]) -> Answer:
    high, low = found
    doubt = f"exact: norms over all {sum(group.entries for group in groups):,} entries"
    if high != low:
        doubt += "; how large a change is does not say how much it matters"
    return Answer("where", f"{high:.3g}", most(groups, what), doubt)
