"""What a drop study answers: how much of a fine-tune is redundant, and whether few large changes
carry it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from deltalens.catalog.metrics import no_direction
from deltalens.io.records import StudyRecord
from deltalens.reports.answers.answer import (
    UNKNOWN,
    Answer,
    over_examples,
)
from deltalens.reports.drop import DropSummary, StrategySummary, ends, summarize_drop_study
from deltalens.reports.wording import number, percent, plus_minus

__all__ = ["drop_answers"]

_NEAR = 0.05
_FIRST = {
    "trivial": "smallest changes first",
    "random": "in random order",
    "salient": "largest changes first",
}


def drop_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer how much is redundant, and which entries carry the fine-tune.

    Args:
        record: of a drop study.

    Returns:
        The answers.

    Raises:
        RecordError: the fine-tune and the base are not measured yet.
    """
    summary = summarize_drop_study(record)
    redundant = _redundant(summary)
    if over := summary.instead_of:
        value = number(ends(record, over)[0])
        why = f"{over} is {value} for fine-tune and base alike, so by {summary.metric}: "
        redundant = replace(redundant, sentence=why + redundant.sentence)
    yield redundant
    if summary.flat:
        return
    if where := _where(summary):
        yield where


def _redundant(summary: DropSummary) -> Answer:
    metric = summary.metric
    if summary.better is None:
        return Answer("redundant", UNKNOWN, no_direction(metric), "no direction, no comparison")
    if not math.isfinite(summary.ft):
        said = f"{metric} of the fine-tune is not finite, so nothing can be compared with it."
        return Answer("redundant", UNKNOWN, said, "the reference is not a number")
    if summary.flat:
        said = (
            f"{metric} is {number(summary.ft)} for the fine-tune, the base and every model "
            "between, so nothing can be seen to fall: another metric or more rows may tell them "
            "apart."
        )
        return Answer("redundant", UNKNOWN, said, "no difference to measure")
    by_name = {held.strategy: held for held in summary.strategies}
    held = by_name.get("trivial") or by_name.get("random") or summary.strategies[0]
    if not held.inner:
        said = f"No drop rate between 0 and 1 is measured yet ({held.strategy})."
        return Answer("redundant", UNKNOWN, said, "nothing to compare")
    if held.within:
        return _within(summary, held)
    return _half(summary, held)


def _within(summary: DropSummary, held: StrategySummary) -> Answer:
    """By a metric of which a difference of 5 % means something."""
    metric, ft = summary.metric, summary.ft
    rate, first = held.within.get(_NEAR), min(held.inner)
    order = _FIRST.get(held.strategy, held.strategy)
    if rate is None:
        shown = number(held.values[first])
        said = (
            f"Little of it by {metric}: with {percent(first)} of the entries back at the base, "
            f"{order}, {metric} is {shown}, not within 5 % of the fine-tune's {number(ft)}"
        )
        return _with_gain(
            Answer("redundant", f"under {percent(first)}", said, _noise(summary, held, first)),
            summary,
        )
    said = (
        f"{percent(rate)} of the entries can go back to the base, {order}, and {metric} stays "
        f"within 5 % of the fine-tune: {number(held.values[rate])} against {number(ft)}"
    )
    most = max(held.inner)
    if rate == most:
        said += f" ({percent(most)} is the highest rate below 1 that was measured)"
    return _with_gain(
        Answer("redundant", percent(rate), said, _noise(summary, held, rate)), summary
    )


def _half(summary: DropSummary, held: StrategySummary) -> Answer:
    """By a metric of which only differences count: where half of the gain from tuning is lost."""
    metric, order = summary.metric, _FIRST.get(held.strategy, held.strategy)
    if not summary.gained:
        said = f"On {metric} the fine-tune is not better than the base, so it says nothing of it"
        return Answer("redundant", UNKNOWN, f"{said}.", "nothing was gained that could be lost")
    finite = [rate for rate, value in held.inner.items() if math.isfinite(value)]
    kept = [rate for rate in finite if held.broken is None or rate < held.broken]
    if not kept:
        lost = f"{percent(held.broken)}" if held.broken is not None else "every rate"
        said = f"Little of it by {metric}: over half of the gain from tuning is lost at {lost}."
        return Answer("redundant", UNKNOWN, said, "the first rate measured is too high")
    rate = max(kept)
    said = (
        f"{percent(rate)} of the entries can go back to the base, {order}, and over half of the "
        f"gain from tuning stays on {metric}: {number(held.values[rate])}; the fine-tune has "
        f"{number(summary.ft)}, the base {number(summary.base)}."
    )
    return Answer("redundant", percent(rate), said, _noise(summary, held, rate))


def _with_gain(answer: Answer, summary: DropSummary) -> Answer:
    """The answer, with what the base has, without which closeness to the fine-tune says little."""
    base, metric = summary.base, summary.metric
    if not math.isfinite(base):
        more = f"; {metric} of the base is not finite"
    elif summary.gained:
        more = f"; the base has {number(base)}"
    elif base == summary.ft:
        more = (
            f". But the base has the same {metric}, so tuning gained nothing that dropping could "
            "lose: another metric or more rows would tell"
        )
    else:
        more = f". But the base is better ({number(base)}), so on {metric} tuning gained nothing"
    return Answer(answer.question, answer.number, f"{answer.sentence}{more}.", answer.uncertainty)


def _noise(summary: DropSummary, held: StrategySummary, rate: float) -> str:
    cells = summary.record.cells
    own = cells[
        (cells["metric"] == summary.metric)
        & (cells["strategy"] == held.strategy)
        & (cells["rate"] == rate)
    ]
    error = float(own["stderr"].astype(float).mean(skipna=False))
    said = over_examples(error, int(own["n"].max()))
    if math.isfinite(error) and held.within and error > _NEAR * abs(summary.ft):
        said += "; that is more than 5 % of the fine-tune's value, so more rows may move the rate"
    if held.orders is not None:
        values = own["value"].astype(float)
        spread = float(values.std(skipna=False)) if len(values) > 1 else math.nan
        said += (
            f"; standard deviation {number(spread)} over {len(values)} random orders"
            if math.isfinite(spread)
            else "; one random order, so the spread between orders is unknown"
        )
    return said


def _where(summary: DropSummary) -> Answer | None:
    by_name = {held.strategy: held for held in summary.strategies}
    salient, trivial = by_name.get("salient"), by_name.get("trivial")
    if salient is None or trivial is None or salient.broken is None:
        return None
    rate = salient.broken
    gained = summary.metric
    said = (
        f"The largest changes carry it: without the {percent(rate)} largest, over half of the gain "
        f"from tuning on {gained} is lost ({number(salient.values[rate])})"
    )
    other = trivial.values.get(rate, math.nan)
    if trivial.broken is not None and trivial.broken <= rate:
        return Answer(
            "where",
            UNKNOWN,
            f"No few entries carry it: over half of the gain from tuning on {gained} is lost at "
            f"{percent(rate)}, largest changes first, and at {percent(trivial.broken)}, smallest "
            "first.",
            _noise(summary, salient, rate),
        )
    if math.isfinite(other):
        said += f"; without the {percent(rate)} smallest it is {number(other)}"
    return Answer(
        "where",
        percent(rate),
        f"{said}. Fine-tune {plus_minus(summary.ft, math.nan)}, base {number(summary.base)}.",
        _noise(summary, salient, rate),
    )
