"""What a training answers: which loss it reached, and what was measured at its end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from deltalens.io.records import TrainingRecord
from deltalens.reports.answers.answer import UNKNOWN, Answer, over_examples
from deltalens.reports.training import TrainingSummary, summarize_training
from deltalens.reports.wording import number

__all__ = ["training_answers"]


def training_answers(record: TrainingRecord) -> Iterator[Answer]:
    """Answer where a training got to.

    Args:
        record: finished or not.

    Returns:
        An answer for the training loss, and one for each metric measured last.

    Raises:
        RecordError: its file of metrics is damaged.
    """
    summary = summarize_training(record)
    if summary.losses:
        yield _loss(summary)
    for name, (step, value, error, n) in summary.measured.items():
        if math.isfinite(value):
            said = f"{summary.method}: {name} {number(value)} after step {step:,}."
            yield Answer("training", number(value), said, over_examples(error, n))
        else:
            said = f"{summary.method}: {name} is not a number after step {step:,}."
            yield Answer("training", UNKNOWN, said, "nothing to compare")


def _loss(summary: TrainingSummary) -> Answer:
    """The training loss at the end, beside the first."""
    last = summary.last_losses
    mean = statistics.fmean(last)
    which = f"{len(last):,} of" if len(last) > 1 else "of"
    where = f"over the last {which} {summary.steps:,} logged steps"
    first = f"the first had {number(summary.losses[0][1])}"
    if not math.isfinite(mean):
        said = f"{summary.method}: the training loss is not a number {where}; {first}."
        return Answer("training", UNKNOWN, said, "its spread is not a number")
    what = "mean training loss" if len(last) > 1 else "loss"
    said = f"{summary.method}: {what} {number(mean)} {summary.unit} {where}; {first}."
    noise = (
        f"standard deviation {number(summary.spread)} from step to step"
        if math.isfinite(summary.spread)
        else "one step, so its spread is unknown"
    )
    return Answer("training", number(mean), said, noise)
