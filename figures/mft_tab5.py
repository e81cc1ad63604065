"""MFT, Tables 5 and 6: every domain's models on every data set (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.figures.beside import beside_note, beside_rows, is_foreign
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_paper import across_names, columns_beside
from deltalens.figures.mft_studies import MftStudy, label, load_all
from deltalens.figures.mft_tables import (
    Column,
    Line,
    block,
    one_a_domain,
    spec_methods,
    study_notes,
)
from deltalens.figures.sweep_tables import measure
from deltalens.figures.tables import SPREAD, TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

__all__ = ["draw"]

_LABELS = ("trained on", "method")


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw comparisons of several domains as a table: a block for each metric, in it a row for each
    domain's models and a column for each data set; the paper's rows below. The paper's Table 5 is
    on LLaMA2-7B, its Table 6 on LLaMA3.1-8B.

    Args:
        folders: of comparisons, one for each domain. All share a base, whose numbers are those of
            the first study that measured it.
        entry: Table 5 or 6.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no comparison, no cell of it is finished, two studies are of one
            domain, or were measured on different data of the same name.
    """
    studies, paper = load_all(folders, "comparison"), paper_table(entry.file_name)
    one_a_domain(studies)
    columns = dict.fromkeys(
        Column(data, metric)
        for study in studies
        for data, metrics in study.sets.items()
        for metric in metrics
    )
    lines = _lines(studies)
    blocks, beside = [], []
    for name in dict.fromkeys(column.name for column in columns):
        shown = [column for column in columns if column.name == name]
        title = f"This study: {measure(name).head}"
        blocks.append(block(title, shown, lines, _LABELS, grouped=1))
        shared = columns_beside(shown, paper, len(_LABELS))
        names = across_names(studies, paper)
        both = beside_rows("Beside the paper", blocks[-1], names, shared, paper.cells)
        if both is not None:
            foreign = is_foreign([study.record for study in studies], paper.model)
            beside.append(replace(both, foreign=foreign))
    blocks += beside
    unranked = ("[Lower Bound] Base Model",)
    blocks.append(printed("The paper (%)", paper, ["method"], paper.measures, unranked=unranked))
    notes = (
        SPREAD,
        "This study's rows are grouped by the domain that a model was trained on, the paper's by "
        "method; the best of each group is bold.",
        *study_notes(studies),
        beside_note(beside),
    )
    paper_notes = (f"The paper: {paper.source}; bold: the best of each column.", *paper.notes)
    return [
        draw_table(TableFigure(entry.file_name, entry.title, tuple(blocks), notes, paper_notes))
    ]


def _lines(studies: list[MftStudy]) -> list[Line]:
    """The base, then each domain's models."""
    lines = [
        Line((study.domain, label(method)), method, [study])
        for study in studies
        for method in study.methods
        if method != "base"
    ]
    if "base" not in spec_methods(studies):
        return lines
    return [Line(("–", label("base")), "base", studies), *lines]
