"""What studies, runs and trainings say to the questions of somebody who reads a report: one module
per kind of record. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from deltalens.catalog.studies import study_name
from deltalens.io.records import RunRecord, StudyRecord, TrainingRecord
from deltalens.reports.answers.anatomy import anatomy_answers
from deltalens.reports.answers.answer import QUESTIONS, UNKNOWN, Answer
from deltalens.reports.answers.drop import drop_answers
from deltalens.reports.answers.gradients import gradient_answers
from deltalens.reports.answers.landscape import landscape_answers
from deltalens.reports.answers.layers import layer_answers
from deltalens.reports.answers.methods import method_answers
from deltalens.reports.answers.models import cost_answers, evaluation_answers
from deltalens.reports.answers.salience import salience_answers
from deltalens.reports.answers.training import training_answers

__all__ = ["QUESTIONS", "UNKNOWN", "Answer", "answers_of"]

_BY_KIND: Mapping[str, Callable[[StudyRecord], Iterable[Answer]]] = {
    "drop-study": drop_answers,
    "inspect": anatomy_answers,
    "mask-ratio-sweep": method_answers,
    "data-ratio-sweep": method_answers,
    "layer-sweep": method_answers,
    "layer-sweep-drop": layer_answers,
    "comparison": method_answers,
    "density-sweep": method_answers,
    "mask-sweep": method_answers,
    "efficiency": cost_answers,
    "salience": salience_answers,
    "evaluate": evaluation_answers,
    "landscape": landscape_answers,
}


def answers_of(record: StudyRecord | RunRecord | TrainingRecord) -> list[Answer]:
    """Answer the questions that a record can answer.

    Args:
        record: of a study, a probe's run, or a training; finished or not.

    Returns:
        Answers, in the order of `QUESTIONS`; none of a kind of study that a package adds.

    Raises:
        RecordError: too little is measured yet, or a file of it is damaged.
    """
    found: Iterable[Answer]
    if isinstance(record, RunRecord):
        found = gradient_answers(record)
    elif isinstance(record, TrainingRecord):
        found = training_answers(record)
    else:
        answered = _BY_KIND.get(study_name(record.spec))
        found = answered(record) if answered is not None else ()
    order = [*QUESTIONS]
    return sorted(found, key=lambda answer: order.index(answer.question))
