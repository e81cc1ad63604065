"""What studies of trainings answer: whether a sparse method did better than training everything,
and which blocks such a method does best with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.methods import facts_of, method_name
from deltalens.catalog.metrics import Better, better_of, gain, no_direction
from deltalens.catalog.variants import is_sparse
from deltalens.io.records import StudyRecord
from deltalens.io.tables import is_finite
from deltalens.reports.answers.answer import UNKNOWN, Answer
from deltalens.reports.trainings import SweepSummary, summarize_sweep
from deltalens.reports.wording import number, plus_minus

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["method_answers"]

_CLEAR = 2.0
"""Standard errors that a difference has to exceed to be called one."""


@dataclass(frozen=True)
class _Point:
    """A method at one setting: a value for each seed."""

    method: str
    setting: str
    """In words, after the method's name; empty without an axis."""
    rows: pd.DataFrame
    mean: float

    @property
    def shown(self) -> str:
        values = self.rows["value"].astype(float)
        spread = float(values.std(skipna=False)) if len(values) > 1 else math.nan
        return plus_minus(self.mean, spread)

    @property
    def name(self) -> str:
        return f"{self.method}{self.setting}"


def method_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer whether a sparse method did better, on the first metric of each data set.

    Args:
        record: of a sweep over trainings, or a comparison.

    Returns:
        The answers.

    Raises:
        RecordError: no cell of it is finished.
    """
    summary = summarize_sweep(record)
    for metric in summary.leading():
        better = better_of(metric, record.facts.get("better"))
        if better is None:
            said = no_direction(metric)
            yield Answer(_question(summary), UNKNOWN, said, "no direction, no comparison")
            continue
        points = [*_points(summary, metric)]
        sparse = [point for point in points if _is_sparse(point)]
        if not sparse:
            continue
        best = max(sparse, key=lambda point: gain(point.mean, 0.0, better))
        reference = _reference(summary, points, best, better)
        if reference is None:
            yield _alone(summary, metric, best, len(sparse))
        else:
            yield _compared(summary, metric, better, best, reference, len(sparse))


def _points(summary: SweepSummary, metric: str) -> Iterator[_Point]:
    frame, axis = summary.of(metric), summary.axis
    frame = frame[is_finite(frame["value"])]
    columns = ["method", *([axis] if axis else [])]
    for key, rows in frame.groupby(columns, sort=False):
        method, *setting = key
        at = setting[0] if setting and setting[0] not in (0, "") else None
        name = axis.replace("_", " ")
        if axis == "group":
            name = "blocks" if "-" in str(at) else "block"
        words = f" at {name} {at:g}" if isinstance(at, float) else f" at {name} {at}"
        yield _Point(
            str(method),
            words if at is not None else "",
            rows,
            float(rows["value"].mean()),
        )


def _is_sparse(point: _Point) -> bool:
    """Whether a method trains or removes a part of the weights, at a setting where it does."""
    facts = facts_of(method_name(point.method))
    if is_sparse(point.method):
        return True
    if facts is None or not facts.masks:
        return False
    own = point.rows.get("mask_ratio")
    return own is None or bool((own > 0).all())


def _reference(
    summary: SweepSummary, points: list[_Point], best: _Point, better: Better
) -> _Point | None:
    """What the best sparse method is compared with: plain fine-tuning; where that is missing the
    best dense training, or else a model as it is. At its own setting, if they have one there."""
    plain = [point for point in points if point.method == summary.record.plain]
    dense = [point for point in points if not _may_be_sparse(point)]
    trained = [point for point in dense if not _is_as_it_is(point)]
    for named in (plain, trained, dense):
        if named:
            own: Any = best.rows[summary.axis].iloc[0] if summary.axis else None
            same = [
                point for point in named if summary.axis and point.rows[summary.axis].iloc[0] == own
            ]
            return max(same or named, key=lambda point: gain(point.mean, 0.0, better))
    return None


def _may_be_sparse(point: _Point) -> bool:
    facts = facts_of(method_name(point.method))
    return is_sparse(point.method) or facts is None or bool(facts.masks) or facts.ratio


def _is_as_it_is(point: _Point) -> bool:
    facts = facts_of(method_name(point.method))
    return facts is not None and facts.as_it_is


def _question(summary: SweepSummary) -> str:
    """A sweep over groups of blocks says where a method does best."""
    return "where" if summary.axis == "group" else "methods"


def _alone(summary: SweepSummary, metric: str, best: _Point, count: int) -> Answer:
    said = (
        f"On {metric}, {best.name} is the best of {count} sparse settings, {best.shown}; nothing "
        "dense stands beside it in this study."
    )
    if count == 1:
        said = (
            f"On {metric}, {best.name} has {best.shown}; nothing dense stands beside it in this "
            "study."
        )
    return Answer(_question(summary), number(best.mean), said, _seeds(best))


def _compared(
    summary: SweepSummary,
    metric: str,
    better: Better,
    best: _Point,
    reference: _Point,
    count: int,
) -> Answer:
    difference, error, basis = _difference(best, reference, better)
    if difference == 0:
        verdict = short = "no difference"
    elif math.isfinite(error) and abs(difference) <= _CLEAR * error:
        short = "no clear difference"
        sign = "+" if difference > 0 else ""
        verdict = f"{short} ({sign}{plus_minus(difference, error)})"
    else:
        word = "better" if difference > 0 else "worse"
        short = f"{word} by {number(abs(difference))}"
        verdict = f"{word} by {plus_minus(abs(difference), error)}"
    said = (
        f"On {metric} ({better} is better), the best sparse method, {best.name}, has {best.shown} "
        f"and {reference.name} {reference.shown}: {verdict}."
    )
    if count > 1 and not summary.record.spec.get("choose_on"):
        basis += f"; chosen as the best of {count} on the rows shown, which flatters it"
    return Answer(_question(summary), short, said, basis)


def _difference(one: _Point, other: _Point, better: Better) -> tuple[float, float, str]:
    """How much better one is, its standard error, and what that rests on."""
    first, second = (
        point.rows.groupby("seed")["value"].mean().astype(float) for point in (one, other)
    )
    # What has no seed, as the fine-tune itself, stands beside every seed.
    if len(second) == 1 and len(first) > 1:
        pairs = first - float(second.iloc[0])
    else:
        pairs = (first - second).dropna()
    if pairs.empty:
        return gain(one.mean, other.mean, better), math.nan, "no seed in common"
    sign = gain(1.0, 0.0, better)
    difference = sign * float(pairs.mean())
    if len(pairs) > 1:
        error = float(pairs.std()) / math.sqrt(len(pairs))
        return difference, error, f"standard error over {len(pairs)} seeds, seed by seed"
    errors = [float(point.rows["stderr"].astype(float).iloc[0]) for point in (one, other)]
    error = math.hypot(*errors)
    said = "one seed, so the spread between trainings is unknown"
    if math.isfinite(error):
        return difference, error, f"{said}; ± is from the rows alone, as if independent"
    return difference, math.nan, said


def _seeds(point: _Point) -> str:
    count = point.rows["seed"].nunique()
    if count > 1:
        return f"standard deviation over {count} seeds"
    return "one seed, so the spread between trainings is unknown"
