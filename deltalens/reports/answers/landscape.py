"""What a loss landscape answers: how sharp the loss is around a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from deltalens.catalog.metrics import is_lower_better
from deltalens.io.records import StudyRecord
from deltalens.io.tables import is_finite
from deltalens.reports.answers.answer import UNKNOWN, Answer, over_examples
from deltalens.reports.landscape import DataSummary, LandscapeSummary, summarize_landscape
from deltalens.reports.wording import number

__all__ = ["landscape_answers"]

_GRID = "grid"


def landscape_answers(record: StudyRecord) -> Iterator[Answer]:
    """Answer how the loss rises around the model in question, and what lies between two models.

    Args:
        record: of a landscape.

    Returns:
        The answers: one for the eigenvalues, if they were computed, and one for each data set.

    Raises:
        RecordError: none of its points is finished.
    """
    summary = summarize_landscape(record)
    plane = record.facts["plane"]
    origin = next(mark for mark in plane["marks"] if mark["role"] == "origin")
    if eigenvalues := plane["found"].get("eigenvalues"):
        yield _curvature(str(origin["name"]), eigenvalues)
    for data in summary.data:
        if is_lower_better(data.better):
            yield _barrier(summary, data) if data.barrier else _rise(record, data, origin)


def _curvature(origin: str, eigenvalues: list[float]) -> Answer:
    largest = max(eigenvalues)
    others = [value for value in eigenvalues if value != largest]
    said = (
        f"At {origin} the largest eigenvalue of the Hessian is {number(largest)}: a step of length "
        f"d along its direction raises the loss by about {number(largest / 2)} d²"
    )
    if others:
        said += f"; the next is {number(max(others))}"
    error = "no error is computed: on other rows the eigenvalues differ"
    return Answer("sharp", number(largest), f"{said}.", error)


def _barrier(summary: LandscapeSummary, data: DataSummary) -> Answer:
    barrier = data.barrier
    assert barrier is not None
    ends = [
        f"{mark['name']} {number(data.marks[mark['name']])}"
        for mark in summary.record.facts["plane"]["marks"]
        if mark["name"] in data.marks and mark["role"] in ("origin", "b")
    ]
    between = " and ".join(ends)
    if barrier.height > 0:
        said = (
            f"Between the two models ({between}) {data.name} rises by {number(barrier.height)} "
            f"above the straight line, at {100 * barrier.at:.0f} % of the way."
        )
    else:
        said = f"No barrier: {data.name} does not rise between the two models ({between})."
    error, n = _error(summary.record, data, None)
    gaps = f"; {barrier.gaps} points without a finite value are left out" if barrier.gaps else ""
    return Answer("sharp", number(barrier.height), said, over_examples(error, n) + gaps)


def _rise(record: StudyRecord, data: DataSummary, origin: dict[str, Any]) -> Answer:
    name, at = str(origin["name"]), (float(origin["a"]), float(origin["b"]))
    start = data.marks.get(name, math.nan)
    cells = record.cells
    grid = cells[
        (cells["data"] == data.data) & (cells["metric"] == data.metric) & (cells["mark"] == _GRID)
    ]
    finite = grid[is_finite(grid["value"])]
    if finite.empty or not math.isfinite(start):
        said = f"{data.name} is not finite at {name} or at every point of the grid yet."
        return Answer("sharp", UNKNOWN, said, "nothing to compare")
    values = [
        (float(value), math.dist(at, (float(a), float(b))))
        for a, b, value in zip(finite["a"], finite["b"], finite["value"], strict=True)
    ]
    highest, distance = max(values)
    lowest = min(values)[0]
    error, n = _error(record, data, name)
    noise = over_examples(error, n)
    if math.isfinite(error) and highest - lowest <= 2 * error:
        noise += "; all points lie within two standard errors, so the plane is flat as far as seen"
    rise = highest - start
    where = "rises by at most" if rise > 0 else "nowhere rises: it falls by at least"
    said = (
        f"From {number(start)} at {name}, {data.name} {where} {number(abs(rise))} on the points "
        f"measured, {number(distance)} away"
    )
    if lowest < start:
        said += f"; the lowest point is {number(start - lowest)} below {name}"
    return Answer("sharp", f"{rise:+.3g}", f"{said}.", noise)


def _error(record: StudyRecord, data: DataSummary, mark: str | None) -> tuple[float, int]:
    """The standard error at a marked model, or at the first, and the examples behind it."""
    cells = record.cells
    own = cells[(cells["data"] == data.data) & (cells["metric"] == data.metric)]
    own = own[own["mark"] != _GRID if mark is None else own["mark"] == mark]
    if own.empty:
        return math.nan, 0
    return float(own["stderr"].iloc[0]), int(own["n"].iloc[0])
