"""What a layer sweep without training answers: which blocks carry a fine-tune."""

from __future__ import annotations

import math
from collections.abc import Iterator

from deltalens.io.records import StudyRecord
from deltalens.reports.answers.answer import UNKNOWN, Answer, over_examples
from deltalens.reports.layers import GroupEffect, MetricSummary, summarize_layers
from deltalens.reports.wording import and_others, name_of_blocks, number, percent

__all__ = ["layer_answers"]

_CLEAR = 2.0
"""Standard errors that a difference has to exceed to be called one."""


def layer_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer which group of blocks costs most without its delta, for each data set.

    Args:
        record: of a layer sweep without training.

    Returns:
        The answers; of several sizes of groups, for the smallest.

    Raises:
        RecordError: the fine-tune and the base are not measured yet.
    """
    summary = summarize_layers(record)
    size = min(summary.sizes)
    for metric in summary.leading:
        if metric.better is None:
            continue
        ranked = metric.by_loss(size)
        if not ranked:
            said = f"No group of blocks has a finite {metric.metric} without its delta yet."
            yield Answer("where", UNKNOWN, said, "nothing to compare")
            continue
        yield _costliest(record, metric, ranked)


def _costliest(record: StudyRecord, metric: MetricSummary, ranked: list[GroupEffect]) -> Answer:
    most, least = ranked[0], ranked[-1]
    amount, gained = most.lost or 0.0, metric.gained or 0.0
    unit = " of the gain from tuning" if gained > 0 else ""
    alike = [group.group for group in ranked if group.lost == most.lost]
    if len(alike) == len(ranked) > 1:
        said = (
            f"No block stands out: on {metric.metric}, dropping any of them costs "
            f"{metric.share(most.lost)}{unit}."
        )
        return Answer("where", metric.share(most.lost), said, _error(record, metric, most)[1])
    error, noise = _error(record, metric, most)
    dropped = number(most.dropped if most.dropped is not None else math.nan)
    said = (
        f"{name_of_blocks(most.group).capitalize()}: without {_its(most.group)} change, "
        f"{metric.metric} is {dropped} against {number(metric.ft)}, a loss of "
        f"{metric.share(amount)}{unit}"
    )
    if len(ranked) > 1:
        said += f"; {_do(least.group, 'cost')} least ({metric.share(least.lost)})"
    recovered = metric.by_recovery(most.size)
    if recovered:
        best = recovered[0]
        said += (
            f". Kept alone, {_do(best.group, 'bring')} back most "
            f"({metric.share(best.recovered)}{unit})"
        )
    if gained <= 0:
        said += ". The fine-tune is not better than the base here, so there is no gain to share out"
    near = [
        group.group
        for group in ranked[1:]
        if math.isfinite(error) and amount - (group.lost or 0.0) <= _CLEAR * error
    ]
    if near:
        noise += f"; not clearly more than {and_others([name_of_blocks(name) for name in near])}"
    return Answer("where", metric.share(most.lost), f"{said}.", noise)


def _error(record: StudyRecord, metric: MetricSummary, group: GroupEffect) -> tuple[float, str]:
    """The standard error of what a group costs, and the same in words."""
    cells = record.cells[record.cells["metric"] == metric.metric]
    ft = cells[cells["method"] == "ft"]
    dropped = cells[(cells["method"] == "drop") & (cells["group"] == group.group)]
    errors = [float(rows["stderr"].iloc[0]) for rows in (ft, dropped) if len(rows)]
    error = math.hypot(*errors) if len(errors) == 2 else math.nan
    n = int(dropped["n"].max()) if len(dropped) else 0
    gained = metric.gained or 0.0
    if not math.isfinite(error) or gained <= 0:
        return error, over_examples(error, n)
    return error, (
        f"± {percent(error / gained)} of the gain, from the standard errors of both models as if "
        f"independent ({n:,} examples)"
    )


def _its(group: str) -> str:
    return "their" if "-" in group else "its"


def _do(group: str, verb: str) -> str:
    """`blocks 4-7 cost`, `block 7 costs`."""
    return f"{name_of_blocks(group)} {verb}{'' if '-' in group else 's'}"
