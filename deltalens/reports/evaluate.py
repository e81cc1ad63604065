"""Which of several models is best, and how trainings moved over their checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import (
    Better,
    better_of,
    gain,
    is_shown,
    leading_that_tell,
    no_direction,
)
from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table
from deltalens.reports.wording import and_others, instead

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Course", "EvaluationSummary", "MetricScores", "Score", "summarize_evaluation"]

_CLEAR = 2.0
"""Standard errors that a difference has to exceed to be called one."""


@dataclass(frozen=True)
class Score:
    """One model on one metric."""

    model: str
    training: str | None
    """The training that it is a checkpoint of; None of other models."""
    step: int | None
    value: float
    stderr: float
    """NaN if unknown."""
    n: int
    """Examples; 0 if not applicable."""

    def __str__(self) -> str:
        return _number(self.value, self.stderr)


@dataclass(frozen=True)
class Course:
    """The checkpoints of one training, by step; all values are finite."""

    training: str
    scores: tuple[Score, ...]
    best: Score

    @property
    def first(self) -> Score:
        """The earliest checkpoint."""
        return self.scores[0]

    @property
    def last(self) -> Score:
        """The latest."""
        return self.scores[-1]


@dataclass(frozen=True)
class MetricScores:
    """All models on one metric."""

    metric: str
    better: Better | None
    """Whether higher or lower values are better; None if unknown: then no model is the best."""
    scores: tuple[Score, ...]

    @property
    def finite(self) -> list[Score]:
        """The models whose value is finite."""
        return [score for score in self.scores if math.isfinite(score.value)]

    @property
    def best(self) -> Score | None:
        """The best model; None if that is unknown."""
        return self._best(self.finite)

    def difference(self, score: Score, other: Score) -> tuple[float, float]:
        """Compute how much better a model is than another.

        Args:
            score, other: of this metric, which has a direction.

        Returns:
            The difference, below 0 if the model is worse; and its standard error if the two values
            are independent, NaN if unknown.
        """
        assert self.better is not None
        return (
            gain(score.value, other.value, self.better),
            math.hypot(score.stderr, other.stderr),
        )

    @property
    def tells(self) -> bool:
        """Whether the models have different values."""
        return len({score.value for score in self.scores}) > 1

    def is_clear(self, score: Score, other: Score) -> bool:
        """Tell whether two models differ by more than two standard errors of the difference.

        Args:
            score, other: of this metric, which has a direction.

        Returns:
            Whether they do; True of any difference whose standard error is unknown.
        """
        difference, error = self.difference(score, other)
        return abs(difference) > _CLEAR * error if math.isfinite(error) else difference != 0

    def courses(self) -> list[Course]:
        """Follow the trainings of which several checkpoints have finite values.

        Returns:
            In the order of the table; [] if the metric has no direction.
        """
        by_training: dict[str, list[Score]] = {}
        for score in self.finite:
            if score.training is not None:
                by_training.setdefault(score.training, []).append(score)
        courses = []
        for training, scores in by_training.items():
            best = self._best(scores)
            if best is not None and len({score.step for score in scores}) > 1:
                courses.append(Course(training, tuple(scores), best))
        return courses

    def _best(self, scores: Sequence[Score]) -> Score | None:
        better = self.better
        if better is None or not scores:
            return None
        return max(scores, key=lambda score: gain(score.value, 0.0, better))


@dataclass(frozen=True)
class EvaluationSummary:
    """An evaluation in numbers and sentences."""

    record: StudyRecord
    metrics: tuple[MetricScores, ...]
    leading: tuple[MetricScores, ...]
    """The leading metric of each data set; but one that differs between models, if any does."""
    instead_of: Mapping[str, str]
    """Each of them -> the leading metric of its data set, nearly always itself."""

    def sentences(self) -> Iterator[str]:
        """Say which model is best, and how each training moved, on the leading metrics.

        Returns:
            Sentences, as a person reads them.
        """
        uncertain = False
        for metric in self.leading:
            if (over := self.instead_of[metric.metric]) != metric.metric:
                value = next(one for one in self.metrics if one.metric == over).scores[0].value
                yield instead(metric.metric, over, value, "for every model")
            if metric.better is None:
                yield no_direction(metric.metric)
            elif metric.best is None:
                yield f"{metric.metric}: no value is finite"
            elif len(metric.scores) > 1:
                yield self._best(metric, metric.best)
            for course in metric.courses():
                yield self._course(metric, course)
            gaps = [score.model for score in metric.scores if not math.isfinite(score.value)]
            if gaps and metric.finite:
                left_out = and_others(gaps)
                yield f"values of {metric.metric} that are not finite are left out: {left_out}"
            uncertain |= any(math.isfinite(score.stderr) for score in metric.scores)
        if uncertain:
            yield (
                "±: standard error over the rows; that of a difference as if the two models had "
                "answered different rows, which is cautious where they answered the same"
            )

    def _best(self, metric: MetricScores, best: Score) -> str:
        text = f"{metric.metric}: best is {best.model}, {best}"
        text += f" (n = {best.n:,})" if best.n else ""
        near = [
            score.model
            for score in metric.finite
            if score is not best and not metric.is_clear(best, score)
        ]
        if not near:
            return f"{text}, clearly ahead of all others"
        return f"{text}; no clear difference to {and_others(near)}"

    def _course(self, metric: MetricScores, course: Course) -> str:
        first, last, best = course.first, course.last, course.best
        change, error = metric.difference(last, first)
        moved = f"{'better' if change >= 0 else 'worse'} by {_number(abs(change), error)}"
        if not metric.is_clear(last, first):
            moved = f"no clear change ({_number(change, error, sign=True)})"
        text = (
            f"{course.training}: {metric.metric} {first} at step {first.step:,}, {last} at step "
            f"{last.step:,}: {moved}"
        )
        if metric.difference(best, last)[0] == 0:
            return f"{text}; the last is the best of {len(course.scores)}"
        behind = "" if metric.is_clear(best, last) else ", not clearly better than the last"
        return f"{text}; best at step {best.step:,}, {best}{behind}"

    def tables(self) -> list[Table]:
        """Show every model on every metric.

        Returns:
            One table, with a row for each model: value ± standard error.
        """
        shown = [each for each in self.metrics if is_shown(each.metric)] or [*self.metrics]
        cells = {(m.metric, score.model): str(score) for m in shown for score in m.scores}
        models = dict.fromkeys(score.model for metric in self.metrics for score in metric.scores)
        rows = tuple(
            (model, *(cells.get((metric.metric, model), "-") for metric in shown))
            for model in models
        )
        return [Table("", ("model", *(metric.metric for metric in shown)), rows)]

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            Every metric's models, the best of them, and the course of each training, as JSON
            values; numbers may be NaN.
        """
        return {
            "study": str(self.record.path),
            "leading": [metric.metric for metric in self.leading],
            "metrics": {metric.metric: _json_of(metric) for metric in self.metrics},
            "notes": self.record.facts.get("notes", []),
        }


def _json_of(metric: MetricScores) -> dict[str, Any]:
    best = metric.best
    return {
        "better": metric.better,
        "best": best.model if best else None,
        "models": {
            score.model: {name: value for name, value in vars(score).items() if name != "model"}
            for score in metric.scores
        },
        "trainings": {
            course.training: {
                "first": course.first.model,
                "last": course.last.model,
                "best": course.best.model,
                **dict(
                    zip(
                        ("gained", "gained_stderr"),
                        metric.difference(course.last, course.first),
                        strict=True,
                    )
                ),
            }
            for course in metric.courses()
        },
    }


def summarize_evaluation(record: StudyRecord) -> EvaluationSummary:
    """Summarize an evaluation, finished or not.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: no model is measured yet, or it is another kind of study.
    """
    if record.kind != "evaluate":
        raise RecordError(f"{record.path}: holds a study of kind {record.kind!r}, not evaluate")
    if record.cells.empty:
        raise RecordError(f"{record.path}: no model is measured yet")
    own = record.facts.get("better")
    metrics = tuple(
        MetricScores(str(name), better_of(str(name), own), tuple(_scores(frame)))
        for name, frame in record.cells.groupby("metric", sort=False)
    )
    by_name = {metric.metric: metric for metric in metrics}
    chosen = leading_that_tell(by_name, lambda name: by_name[name].tells, own)
    return EvaluationSummary(record, metrics, tuple(by_name[name] for name in chosen), chosen)


def _scores(frame: pd.DataFrame) -> Iterator[Score]:
    columns = ["model", "training", "step", "value", "stderr", "n"]
    for model, training, step, value, stderr, n in frame[columns].itertuples(index=False):
        yield Score(
            str(model),
            str(training) or None,
            int(step) if training else None,
            float(value),
            float(stderr),
            int(n),
        )


def _number(value: float, error: float, *, sign: bool = False) -> str:
    small = abs(value) < 1e-3 or abs(value) >= 1e4
    shown = f"{value:{'+' if sign else ''}{'.4g' if small else '.4f'}}"
    return shown + (f" ± {error:{'.4g' if small else '.4f'}}" if math.isfinite(error) else "")
