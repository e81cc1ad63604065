"""Methods on the data of the domain they were trained on: of what MFT's Tables 1 and 2 are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.mft_studies import MftStudy, label, load_all
from deltalens.figures.mft_tables import (
    Line,
    block,
    one_a_domain,
    own_columns,
    spec_methods,
    study_notes,
)
from deltalens.figures.tables import SPREAD, Block, TableFigure, printed, write
from deltalens.io.papers import paper_table

__all__ = ["draw_within"]


def draw_within(
    specific: Sequence[str | Path], mixed: Sequence[str | Path], name: str, title: str
) -> list[Path]:
    """Write comparisons as a table: methods down, the data sets of each study's own domain across;
    the paper's rows below.

    Args:
        specific: folders of studies of fine-tunes on a single domain; the table is written to the
            first.
        mixed: the same of fine-tunes on a mixture.
        name: of the files, and of the paper's table.
        title: of the table.

    Raises:
        RecordError: a folder without a comparison or a finished cell; two studies of one domain.
    """
    studies = load_all([*specific, *mixed], "comparison")
    halves = [
        ("domain-specific FFT", studies[: len(specific)]),
        ("mixed-domain FFT", studies[len(specific) :]),
    ]
    paper = paper_table(name)
    blocks = [_block(f"This study: {kind}", own) for kind, own in halves if own]
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
            for kind, own in halves
            for note in study_notes(own)
        ),
        f"The paper: {paper.source}; bold: the best of a setting.",
        *paper.notes,
    )
    return write(TableFigure(name, title, tuple(blocks), notes), studies[0].path)


def _block(title: str, studies: list[MftStudy]) -> Block:
    one_a_domain(studies)
    lines = [Line((label(one),), one, studies) for one in spec_methods(studies)]
    return block(title, own_columns(studies), lines, ["method"])
