"""What a training answers: which loss it reached, and what was measured at its end."""

from __future__ import annotations

import math
from collections.abc import Iterator

from deltalens.io.records import TrainingRecord
from deltalens.reports.answers.answer import UNKNOWN, Answer, over_examples
from deltalens.reports.training import summarize_training
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
        last = summary.last_losses
        mean = sum(last) / len(last)
        spread = summary.spread
        what = f"mean training loss {number(mean)}" if len(last) > 1 else f"loss {number(mean)}"
        which = f"{len(last):,} of" if len(last) > 1 else "of"
        said = (
            f"{summary.method}: {what} {summary.unit} over the last {which} {summary.steps:,} "
            f"logged steps; the first had {number(summary.losses[0][1])}."
        )
        noise = (
            f"standard deviation {number(spread)} from step to step"
            if math.isfinite(spread)
            else "one step, so its spread is unknown"
        )
        shown = number(mean) if math.isfinite(mean) else UNKNOWN
        yield Answer("training", shown, said, noise)
    for name, (step, value, error, n) in summary.measured.items():
        said = f"{summary.method}: {name} {number(value)} after step {step:,}."
        shown = number(value) if math.isfinite(value) else UNKNOWN
        yield Answer("training", shown, said, over_examples(error, n))
