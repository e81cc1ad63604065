"""What follows from a probe's run: said by `deltalens monitor`, and by a run in Python."""

from __future__ import annotations

from deltalens.io.records import RunRecord
from deltalens.reports.answers import answers_of
from deltalens.reports.caveats import caveats_of
from deltalens.reports.run import RunSummary

__all__ = ["conclusions_of"]

_FAULTY = (
    "Find the cause of the NaN or infinite gradients first (learning rate, precision, the rows of "
    "that step): means over such a step are not numbers."
)
_COMPARE = (
    "Whether it pays to train the largest gradients alone: `deltalens sweep mask-ratio "
    "gmt,random-mask MODEL --train-data F --eval-data F -o STUDY` measures it."
)


def conclusions_of(run: RunRecord, summary: RunSummary) -> list[str]:
    """Say what a reader should conclude from a run, and what to do next.

    Args:
        run: finished or not.
        summary: of it.

    Returns:
        Sentences; none before the first step.
    """
    if not summary.steps:
        return []
    answers = [str(answer) for answer in answers_of(run)]
    said = [*answers, *(f"warning: {caveat}" for caveat in caveats_of(run))]
    if summary.faults:
        return [*said, _FAULTY]
    return [*said, _COMPARE] if summary.groups[0].masks else said
