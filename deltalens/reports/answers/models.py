"""What an evaluation and an efficiency study answer: which model is best, and what a method
costs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from deltalens.catalog.metrics import no_direction
from deltalens.io.records import StudyRecord
from deltalens.reports.answers.answer import UNKNOWN, Answer, over_examples
from deltalens.reports.efficiency import summarize_efficiency
from deltalens.reports.evaluate import MetricScores, Score, summarize_evaluation
from deltalens.reports.wording import and_others, number

__all__ = ["cost_answers", "evaluation_answers"]


def evaluation_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer which model is best on the leading metric of each data set.

    Args:
        record: of an evaluation.

    Returns:
        The answers.

    Raises:
        RecordError: no model is measured yet.
    """
    summary = summarize_evaluation(record)
    for metric in summary.leading:
        if metric.better is None:
            said = no_direction(metric.metric)
            yield Answer("best", UNKNOWN, said, "no direction, no comparison")
        elif metric.best is None:
            said = f"No model has a finite {metric.metric}."
            yield Answer("best", UNKNOWN, said, "nothing to compare")
        else:
            yield _best(metric, metric.best)


def _best(metric: MetricScores, best: Score) -> Answer:
    error = over_examples(best.stderr, best.n)
    others = [score for score in metric.finite if score is not best]
    if not others:
        said = f"{best.model} has {metric.metric} {best}; no other model was measured."
        return Answer("best", number(best.value), said, error)
    near = [score.model for score in others if not metric.is_clear(best, score)]
    alike = [score.model for score in others if score.value == best.value]
    if len(alike) == len(others):
        said = f"All {len(others) + 1} models have the same {metric.metric}, {best}."
        return Answer("best", number(best.value), said, error)
    said = f"{best.model}: {metric.metric} {best}"
    said += f", with no clear difference to {and_others(near)}" if near else ", clearly ahead"
    return Answer("best", number(best.value), f"{said}.", error)


def cost_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer how much slower each method makes a step.

    Args:
        record: of an efficiency study.

    Returns:
        An answer for each method beside plain fine-tuning.

    Raises:
        RecordError: no repeat of it is finished.
    """
    for name, ratio in summarize_efficiency(record).relative().items():
        if name == "sft":
            continue
        slower = 100 * (1 / float(ratio.median()) - 1)
        word = "slower" if slower >= 0 else "faster"
        said = f"A step by {name} is {abs(slower):.1f} % {word} than one by sft."
        if not math.isfinite(slower):
            yield Answer("cost", UNKNOWN, f"{name} has no finite speed.", "nothing to compare")
            continue
        if len(ratio) < 2:
            spread = "one repeat, so the spread is unknown"
        else:
            low, high = (100 * (1 / float(ratio.quantile(q)) - 1) for q in (0.9, 0.1))
            spread = f"10th to 90th percentile of {len(ratio)} repeats: {low:+.1f} to {high:+.1f} %"
        yield Answer("cost", f"{slower:+.1f} %", said, spread)
