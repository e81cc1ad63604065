"""What the anatomy of a delta answers: how much of it is exactly zero, and where it is largest."""

from __future__ import annotations

import math
from collections.abc import Iterator

from deltalens.io.records import StudyRecord
from deltalens.reports.answers.answer import Answer
from deltalens.reports.inspect import Anatomy, summarize_inspection
from deltalens.reports.wording import percent

__all__ = ["anatomy_answers"]

_PARTS = {"layer": "layer", "kind": "kind of projection"}


def anatomy_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer how much is unchanged, and which layer and kind of projection changed most.

    Args:
        record: of an inspection.

    Returns:
        The answers.

    Raises:
        RecordError: nothing is recorded in it.
    """
    groups = summarize_inspection(record).groups
    for group in groups:
        if group.level == "overall" and not math.isnan(group.get("unchanged")):
            yield _unchanged(group)
    for level, name in _PARTS.items():
        changed = [
            group
            for group in groups
            if group.level == level and math.isfinite(group.get("relative_norm"))
        ]
        if len(changed) > 1:
            yield _most(changed, name)


def _unchanged(group: Anatomy) -> Answer:
    said = f"{percent(group.get('unchanged'))} of the entries are exactly as in the base"
    first, tenth = group.get("energy_top_0.01"), group.get("energy_top_0.1")
    if not math.isnan(first) and not math.isnan(tenth):
        said += (
            f"; of the squared norm of the change, the largest 1 % of entries hold "
            f"{percent(first)}, the largest 10 % {percent(tenth)}"
        )
    counted = f"exact: counted over all {group.entries:,} entries; no model was run"
    return Answer("redundant", percent(group.get("unchanged")), f"{said}.", counted)


def _most(groups: list[Anatomy], name: str) -> Answer:
    by_norm = sorted(groups, key=lambda group: -group.get("relative_norm"))
    most, least = by_norm[0], by_norm[-1]
    high, low = most.get("relative_norm"), least.get("relative_norm")
    exact = f"exact: norms over all {sum(group.entries for group in groups):,} entries"
    if high == low:
        said = f"Relative to its weights, every {name} changed alike (‖δ‖ / ‖base‖ = {high:.3g})."
        return Answer("where", f"{high:.3g}", said, exact)
    said = (
        f"Relative to its weights, the {name} that changed most is {most.name} "
        f"(‖δ‖ / ‖base‖ = {high:.3g}), and least {least.name} ({low:.3g})."
    )
    how_large = "; how large a change is does not say how much it matters"
    return Answer("where", f"{high:.3g}", said, exact + how_large)
