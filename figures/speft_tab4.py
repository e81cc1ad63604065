"""SPEFT, Table 4: static or dynamic masks, global or local (2412.13488)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.speft_beside import beside_models, compared_notes
from deltalens.figures.speft_studies import MASK_SWEEP, SpeftStudy, load_speft
from deltalens.figures.speft_tables import Row, own_block, scores_by_model, unfinished
from deltalens.figures.tables import NOTHING, TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

__all__ = ["draw"]

_KEYS = ("S / D", "G / L")
_LABELS = (*_KEYS, "refreshed every")
_SCOPES = {"global": "G", "tensor": "L"}
"""The paper's local masks have one density in every weight, as ours of scope `tensor`."""


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw sweeps over masks as a table: a row for each scope, static and with each number of steps
    between two masks; a column for each task; the same beside the paper's rows; then the paper's
    table.

    Args:
        folders: of sweeps over masks, such as one for each task.
        entry: the table.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no sweep over masks, no cell of it is finished, or two studies are
            of one task.
    """
    studies, paper = load_speft(folders, MASK_SWEEP), paper_table(entry.file_name)
    parts = scores_by_model(studies, paper, _rows)
    compared = [
        block for scores in parts.values() for block in beside_models(_LABELS, scores, paper, _KEYS)
    ]
    blocks = (
        *(own_block(f"This study{title}", _LABELS, scores) for title, scores in parts.items()),
        *compared,
        printed("The paper (%)", paper, ["model", *_KEYS], paper.measures, grouped=1),
    )
    notes = (
        *dict.fromkeys(note for scores in parts.values() for note in scores.notes),
        "S / D: static or dynamic masks. G / L: global or local, each weight at the same density; "
        "the scope layer, a block at one density, is not the paper's.",
        *compared_notes(compared, paper),
        *unfinished(studies),
    )
    paper_notes = (f"The paper: {paper.source}; bold: the best of each model.", *paper.notes)
    return [draw_table(TableFigure(entry.file_name, entry.title, blocks, notes, paper_notes))]


def _rows(studies: Sequence[SpeftStudy]) -> list[Row]:
    """Static masks first, then by the steps between two masks."""
    rows = {}
    for study in studies:
        for method in study.methods:
            masks = study.masks(method)
            every, scope = masks.refresh_every, masks.scope
            keys = ("D" if every else "S", _SCOPES.get(scope, scope))
            labels = (*keys, f"{every} steps" if every else NOTHING)
            known = keys if scope in _SCOPES else ()
            rows[method] = (
                (float(every or 0), [*_SCOPES].index(scope) if known else 9),
                Row(labels, method, known),
            )
    return [row for _, row in sorted(rows.values(), key=lambda placed: placed[0])]
