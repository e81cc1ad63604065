"""Methods and tasks as SPEFT's tables have them: a study's rows with their average and the number
of tasks in which each is the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from deltalens.errors import Lines
from deltalens.figures.speft_studies import SpeftStudy
from deltalens.figures.speft_tasks import Task, tasks_of
from deltalens.figures.tables import NOTHING, Block, Entry, Measure, mark_best, over_seeds
from deltalens.io.papers import PaperTable

__all__ = [
    "AVERAGE",
    "BEST",
    "Row",
    "Scores",
    "own_block",
    "scores_by_model",
    "unfinished",
]

AVERAGE, BEST = "Avg.", "#"
"""The paper's columns that are no tasks."""
_COMPETING = (
    "Mean ± standard deviation over seeds; bold: the best mean, whether significant or not. Models "
    "as they are and the training of all weights do not compete."
)
_AVERAGED = (
    "Avg.: the mean over the tasks, ± the mean of their deviations, as the paper's caption has it. "
    "#: the number of tasks in which a row is the best; rows that look equal all count, unless all "
    "do."
)


class Row(NamedTuple):
    """A row of a study."""

    labels: tuple[str, ...]
    method: str
    """Its name in the records."""
    printed: tuple[str, ...] = ()
    """The labels of its row in the paper; empty if the paper has none."""
    competes: bool = True


class Scores(NamedTuple):
    """The numbers of a study, or of several that share a table."""

    rows: Sequence[Row]
    tasks: Sequence[Task]
    measures: list[Measure]
    """Of each task, how it is shown."""
    columns: list[list[Entry]]
    """Of each task, the rows' cells."""
    averages: list[Entry]
    """Of each row; empty if the tasks cannot be averaged."""
    counts: list[Entry]
    """Of each row, in how many tasks it is the best; empty if the tasks cannot be averaged."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the numbers."""
        return (_COMPETING, *([_AVERAGED] if self.averages else []))


def _score(rows: Sequence[Row], tasks: Sequence[Task]) -> Scores:
    """Take means over seeds and over tasks.

    Args:
        rows: of the table.
        tasks: its columns. They are averaged if there are several data sets, whose metrics share
            their unit and direction.

    Returns:
        The numbers.
    """
    models = len({task.study.record.model for task in tasks}) > 1
    measures = [task.measure(models) for task in tasks]
    columns = [
        _marked([over_seeds(task.values(row.method), one) for row in rows], rows, one)
        for task, one in zip(tasks, measures, strict=True)
    ]
    sets = {(task.study.path, task.data) for task in tasks}
    if len(sets) < 2 or len({(one.better, one.scale) for one in measures}) > 1:
        return Scores(rows, tasks, measures, columns, [], [])
    digits = max(one.digits for one in measures)
    average = replace(measures[0], digits=digits)
    of_rows = [*zip(*columns, strict=True)]
    averages = _marked([_average(entries, digits) for entries in of_rows], rows, average)
    counts = [
        Entry(str(best), best) if row.competes else Entry(NOTHING)
        for row, best in zip(rows, (sum(e.best for e in own) for own in of_rows), strict=True)
    ]
    return Scores(rows, tasks, measures, columns, averages, counts)


def _average(entries: Sequence[Entry], digits: int) -> Entry:
    """The mean of a row's means, and of its deviations; nothing where a task is missing."""
    if not all(entry.seeds for entry in entries):
        return Entry(NOTHING)
    mean = sum(entry.value for entry in entries) / len(entries)
    spread = sum(entry.deviation for entry in entries) / len(entries)
    text = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if math.isfinite(spread) else "")
    return Entry(text, mean, spread)


def _marked(column: list[Entry], rows: Sequence[Row], shown: Measure) -> list[Entry]:
    """The best of the rows that compete."""
    competing = [index for index, row in enumerate(rows) if row.competes]
    marked = mark_best([column[index] for index in competing], shown.digits, shown.better)
    found = dict(zip(competing, marked, strict=True))
    return [found.get(index, entry) for index, entry in enumerate(column)]


def scores_by_model(
    studies: Sequence[SpeftStudy],
    paper: PaperTable,
    rows_of: Callable[[Sequence[SpeftStudy]], Sequence[Row]],
) -> dict[str, Scores]:
    """Part studies as the paper's table parts its rows: those of one model have an average.

    Args:
        studies: of a table.
        paper: the table; it may have models as columns instead.
        rows_of: makes the rows of studies.

    Returns:
        What a block's title adds, nothing where there is a single block -> its numbers.

    Raises:
        RecordError: two studies are of one model and task.
    """
    found: dict[str, list[SpeftStudy]] = {}
    for study in studies:
        found.setdefault(study.record.model if "model" in paper.cells else "", []).append(study)
    return {
        f": {model}" if len(found) > 1 else "": _score(rows_of(part), tasks_of(part))
        for model, part in found.items()
    }


def own_block(title: str, labels: Sequence[str], scores: Scores) -> Block:
    """Make a study's block.

    Args:
        title: above the block.
        labels: heads of the rows' labels.
        scores: the numbers.

    Returns:
        The block: the tasks, average and number of best tasks where there are any, and the number
        of seeds.
    """
    heads: list[str] = []
    for task, shown in zip(scores.tasks, scores.measures, strict=True):
        rows = sorted({*task.rows()})
        heads.append(Lines(shown.head, *([f"n = {rows[-1]}"] if rows else [])))
    columns = [*scores.columns]
    if scores.averages:
        heads += [AVERAGE, BEST]
        columns += [scores.averages, scores.counts]
    lines = []
    for row, entries in zip(scores.rows, zip(*columns, strict=True), strict=True):
        seeds = sorted({entry.seeds for entry in entries[: len(scores.tasks)]})
        span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
        lines.append((*map(Entry, row.labels), *entries, Entry(span, float(seeds[-1]))))
    return Block("study", title, (*labels, *heads, "seeds"), tuple(lines), len(labels))


def unfinished(studies: Sequence[SpeftStudy]) -> tuple[str, ...]:
    """Say what was trained on, and what of a study is missing.

    Args:
        studies: of the table.

    Returns:
        Sentences.
    """
    notes = []
    for study in studies:
        rows = study.record.spec.get("data") or []
        counted = f" ({rows[1]} rows)" if len(rows) > 1 else ""
        model = f"{study.record.model} " if study.record.model else ""
        notes.append(f"{study.domain}: {model}trained on {study.trained_on}{counted}.")
        wanted, missing = study.record.spec.get("seeds"), []
        for method in study.methods:
            seeds = study.frame[study.frame["method"] == method]["seed"].nunique()
            if not seeds:
                missing.append(f"nothing of {study.label(method)} yet")
            elif study.is_trained(method) and isinstance(wanted, int) and seeds < wanted:
                missing.append(f"{seeds} of {wanted} seeds of {study.label(method)}")
        if missing:
            notes.append(f"{study.domain} is not finished: {', '.join(missing)}.")
    return tuple(notes)
