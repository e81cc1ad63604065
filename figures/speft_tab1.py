"""SPEFT, Tables 1 to 3 and 9 to 12: salience metrics and low-rank adapters at one count of trained
parameters (2412.13488)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.catalog.methods import REFERENCES
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.speft_beside import beside_models, compared_notes
from deltalens.figures.speft_studies import COMPARISON, SpeftStudy, load_speft
from deltalens.figures.speft_tables import Row, own_block, scores_by_model, unfinished
from deltalens.figures.tables import TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

__all__ = ["draw"]

_LABELS = ("method",)


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw comparisons as a table: a row for each method, SPEFT by its salience metric, a column
    for each task, their average and the number of best tasks; the same beside the paper's rows;
    then the paper's table.

    Args:
        folders: of comparisons, such as one for each task.
        entry: the table; its number says which of the paper's rows stand beside.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no comparison, no cell of it is finished, or two studies are of
            one task.
    """
    studies, paper = load_speft(folders, COMPARISON), paper_table(entry.file_name)
    parts = scores_by_model(studies, paper, _rows)
    compared = [
        block
        for scores in parts.values()
        for block in beside_models(_LABELS, scores, paper, ["method"])
    ]
    labels = ["model", "method"] if "model" in paper.cells else ["method"]
    blocks = (
        *(own_block(f"This study{title}", _LABELS, scores) for title, scores in parts.items()),
        *compared,
        printed(
            "The paper (%)",
            paper,
            labels,
            paper.measures,
            grouped=len(labels) - 1,
            unranked=("Pretrained",),
        ),
    )
    notes = (
        *dict.fromkeys(note for scores in parts.values() for note in scores.notes),
        *compared_notes(compared, paper),
        *unfinished(studies),
    )
    paper_notes = (f"The paper: {paper.source}; bold: the best of each model.", *paper.notes)
    return [draw_table(TableFigure(entry.file_name, entry.title, blocks, notes, paper_notes))]


def _rows(studies: Sequence[SpeftStudy]) -> list[Row]:
    """A row for each method of any study, in one order."""
    first = studies[0]
    rows = {
        method: Row((study.label(method),), method, _key(study, method), method not in REFERENCES)
        for study in studies
        for method in study.methods
    }
    order = first.in_order([*rows])
    return [rows[method] for method in order]


def _key(study: SpeftStudy, method: str) -> tuple[str, ...]:
    name = study.printed(method)
    return (name,) if name else ()
