"""What a salience study answers: which weights sparse tuning would train, by which metric."""

from __future__ import annotations

from collections.abc import Iterator

from deltalens.io.records import StudyRecord
from deltalens.reports.answers.answer import Answer
from deltalens.reports.salience import SalienceSummary, label_of, summarize_salience
from deltalens.reports.wording import percent

__all__ = ["salience_answers"]


def salience_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer how many weights each mask keeps, and how far two metrics choose the same.

    Args:
        record: of a salience study.

    Returns:
        The answer; none before a mask is measured.

    Raises:
        RecordError: nothing of it is measured.
    """
    summary = summarize_salience(record)
    parameters = record.facts.get("parameters")
    if not summary.kept or not parameters:
        return
    share = percent(summary.kept / parameters)
    said = f"Each mask keeps {summary.kept:,} weights, {share} of the model"
    own = [pair for pair in summary.pairs("agreement") if "random" not in (pair.one, pair.other)]
    if not own:
        yield Answer("salience", share, f"{said}.", _halves(summary))
        return
    most = max(own, key=lambda pair: pair.jaccard)
    least = min(own, key=lambda pair: pair.jaccard)
    said += f". {most.labels} share most of theirs, {percent(most.shared)}"
    if least is not most and least.jaccard < most.jaccard:
        said += (
            f"; {least.labels} least, {percent(least.shared)} (by chance a Jaccard index of "
            f"{least.chance:.2g})"
        )
    yield Answer("salience", share, f"{said}.", _halves(summary))


def _halves(summary: SalienceSummary) -> str:
    """How much of a mask depends on the calibration examples."""
    halves = [pair for pair in summary.pairs("sample") if pair.other == "halves"]
    if not halves:
        return "how much depends on the calibration examples was not measured"
    worst = min(halves, key=lambda pair: pair.jaccard)
    return (
        f"two halves of the calibration data lead {label_of(worst.one)}, the least steady metric, "
        f"to masks that share {percent(worst.shared)} of their weights"
    )
