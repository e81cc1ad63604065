"""MFT, Tables 1 and 2: methods on the data of the domain they were trained on (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.figures.beside import beside_note, beside_rows, is_foreign
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_paper import columns_beside, row_names
from deltalens.figures.mft_studies import MftStudy, label, load_all
from deltalens.figures.mft_tables import (
    Line,
    block,
    one_a_domain,
    own_columns,
    spec_methods,
    study_notes,
)
from deltalens.figures.tables import SPREAD, Block, TableFigure, draw_table, printed
from deltalens.io.papers import PaperTable, paper_table

__all__ = ["draw"]

_MIXED = "Mixed Domain"
"""Of Table 1; Table 2 calls it otherwise."""


def draw(folders: Sequence[Path], entry: FigureEntry, mixed: Sequence[Path] = ()) -> list[Drawing]:
    """Draw comparisons as a table: a row for each method, a column for each data set of the study's
    own domain; the paper's rows below. The paper's Table 1 is on LLaMA2-7B, its Table 2 on
    LLaMA3.1-8B.

    Args:
        folders: of comparisons that start from a fine-tune on a single domain, one for each domain.
        entry: Table 1 or 2.
        mixed: those that start from a fine-tune on a mixture: the lower half of the paper's table.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no comparison, no cell of it is finished, or two studies are of
            one domain.
    """
    studies = load_all([*folders, *mixed], "comparison")
    halves = [
        ("domain-specific FFT", studies[: len(folders)]),
        ("mixed-domain FFT", studies[len(folders) :]),
    ]
    paper = paper_table(entry.file_name)
    own = {kind: _block(f"This study: {kind}", half) for kind, half in halves if half}
    beside = [
        both
        for (kind, half), setting in zip(halves, ("Specific Domain", _MIXED), strict=True)
        if half and (both := _beside(kind, own[kind], half, setting, paper)) is not None
    ]
    blocks = [*own.values(), *beside]
    blocks.append(
        printed(
            "The paper (%; in brackets: the distance to FFT)",
            paper,
            ["setting", "method"],
            paper.measures,
            grouped=1,
            unranked=("Pre-Trained Model (Lower Bound)",),
        )
    )
    notes = (
        SPREAD,
        *(
            (f"{kind}: " if mixed else "") + note
            for kind, half in halves
            for note in study_notes(half)
        ),
        beside_note(beside),
    )
    paper_notes = (f"The paper: {paper.source}; bold: the best of each setting.", *paper.notes)
    return [
        draw_table(TableFigure(entry.file_name, entry.title, tuple(blocks), notes, paper_notes))
    ]


def _block(title: str, studies: list[MftStudy]) -> Block:
    one_a_domain(studies)
    lines = [Line((label(method),), method, studies) for method in spec_methods(studies)]
    return block(title, own_columns(studies), lines, ["method"])


def _beside(
    kind: str, own: Block, studies: list[MftStudy], setting: str, paper: PaperTable
) -> Block | None:
    """A half of the study's table beside that of the paper's; the base stands above both."""
    settings = [name for name in dict.fromkeys(paper.cells["setting"]) if name]
    wanted = settings[-1] if setting == _MIXED else setting
    rows = paper.cells[paper.cells["setting"].isin(["", wanted])]
    names = row_names(spec_methods(studies))
    columns = columns_beside(own_columns(studies), paper)
    title = f"Beside the paper: {kind} (in brackets: the distance to FFT)"
    both = beside_rows(title, own, names, columns, rows)
    foreign = is_foreign([study.record for study in studies], paper.model)
    return both and replace(both, foreign=foreign)
