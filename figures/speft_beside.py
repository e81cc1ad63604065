"""Rows of a study beside the rows of SPEFT's tables: numbers, differences and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from deltalens.catalog.metrics import Better, is_lower_better
from deltalens.figures.beside import Pair, beside_block, is_called, is_foreign
from deltalens.figures.speft_tables import AVERAGE, BEST, Scores
from deltalens.figures.tables import NOTHING, Block, Entry, printed_entry
from deltalens.io.papers import LOST, PaperTable
from deltalens.io.tables import ranks

__all__ = ["beside", "beside_models", "compared_notes"]

_COMPARED = (
    "Beside the paper: this study's rows that the paper has as well, and their ranks by Avg. among "
    "each other. Of a single data set, Avg. is its first metric. Ranks can be compared whatever the"
    " tasks; averages only over the same ones."
)
_RANK = "rank"


def beside(
    title: str,
    labels: Sequence[str],
    scores: Scores,
    paper: PaperTable,
    keys: Sequence[str],
    model: str = "",
) -> Block | None:
    """Set a study's rows beside the paper's: for each row the study's numbers, the paper's and
    their difference, on the tasks that both have.

    Args:
        title: above the block.
        labels: heads of the rows' labels.
        scores: the study's numbers.
        paper: the paper's table.
        keys: its labels that name a row, as `Row.printed` has them.
        model: the rows to take, if the paper has several models.

    Returns:
        The block; None if no number of the paper belongs to a row of the study.
    """
    cells = paper.cells[paper.cells["model"] == model] if model else paper.cells
    of_key = {tuple(str(row[key]) for key in keys): row for _, row in cells.iterrows()}
    common = [index for index, row in enumerate(scores.rows) if row.printed in of_key]
    rows = [of_key[scores.rows[index].printed] for index in common]

    def pair(head: str, ours: Sequence[Entry], comparable: bool = True) -> Pair:
        printed = [printed_entry(str(row[head])) for row in rows]
        return Pair(head, [ours[index] for index in common], printed, comparable)

    tasks = [name for name in paper.measures if name not in (AVERAGE, BEST)]
    matches = _matches(scores, tasks)
    pairs = [pair(name, scores.columns[at]) for name, at in matches.items()]
    if AVERAGE in paper.measures:
        same = len(matches) == len(tasks) == len(scores.tasks)
        ours = scores.averages or scores.columns[0]
        average = pair(AVERAGE, ours, same)
        pairs += [average, *_ranked(average, scores.measures[0].better)]
    return beside_block(title, labels, [scores.rows[index].labels for index in common], pairs)


def _matches(scores: Scores, tasks: Sequence[str]) -> dict[str, int]:
    """The paper's tasks that the study has in per cent, too: name -> the study's column."""
    found: dict[str, int] = {}
    for name in tasks:
        for at, (task, shown) in enumerate(zip(scores.tasks, scores.measures, strict=True)):
            if shown.scale == 100 and task.is_called(name):
                found.setdefault(name, at)
    return found


def _ranked(average: Pair, better: Better | None) -> list[Pair]:
    """The ranks of the rows whose average both have; none of fewer than two."""
    values = [(o.value, p.value) for o, p in zip(average.ours, average.printed, strict=True)]
    both = [index for index, pair in enumerate(values) if all(map(math.isfinite, pair))]
    if better is None or len(both) < 2:
        return []
    ours = ranks([values[index][0] for index in both], is_lower_better(better))
    theirs = ranks([values[index][1] for index in both])

    def entries(of_both: list[float]) -> list[Entry]:
        known = dict(zip(both, of_both, strict=True))
        return [
            Entry(f"{known[index]:g}", known[index]) if index in known else Entry(NOTHING)
            for index in range(len(values))
        ]

    return [Pair(_RANK, entries(ours), entries(theirs), form="+g")]


def compared_notes(blocks: Sequence[Block], paper: PaperTable) -> tuple[str, ...]:
    """Say what the blocks beside the paper's show, or why there is none.

    Args:
        blocks: those that there are.
        paper: the paper's table.

    Returns:
        A sentence.
    """
    if blocks:
        return (_COMPARED,)
    lost = all(cell in ("", LOST) for name in paper.measures for cell in paper.cells[name])
    return (
        "The body of the paper's table is lost, so no difference to it can be shown."
        if lost
        else "No number of the paper belongs to a row and task of this study.",
    )


def beside_models(
    labels: Sequence[str], scores: Scores, paper: PaperTable, keys: Sequence[str]
) -> list[Block]:
    """Set a study's rows beside each of the paper's models, or beside its own model alone if the
    paper has it.

    Args:
        labels, scores, paper, keys: as `beside` takes them.

    Returns:
        A block for each model of which a number can be compared.
    """
    models = [*dict.fromkeys(paper.cells["model"])] if "model" in paper.cells else [""]
    trained = {task.study.record.model for task in scores.tasks}
    own = [m for m in models if m and any(is_called(one, m) for one in trained)]
    blocks = [
        beside(
            f"Beside the paper: {model}" if model else "Beside the paper",
            labels,
            scores,
            paper,
            keys,
            model,
        )
        for model in own or models
    ]
    records = [task.study.record for task in scores.tasks]
    return [
        replace(block, foreign=is_foreign(records, model))
        for model, block in zip(own or models, blocks, strict=True)
        if block is not None
    ]
