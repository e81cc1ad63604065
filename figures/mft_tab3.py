"""MFT, Table 3: masks by a global threshold beside masks by a local ratio (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.catalog.methods import REFERENCES
from deltalens.errors import RecordError
from deltalens.figures.beside import beside_note, beside_rows
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_paper import columns_beside, global_names
from deltalens.figures.mft_studies import MftStudy, label, load_all
from deltalens.figures.mft_tables import (
    Line,
    block,
    masked,
    one_a_domain,
    own_columns,
    spec_methods,
    study_notes,
)
from deltalens.figures.tables import SPREAD, TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw comparisons with a global threshold as a table, beside those with a local ratio, each
    domain on its own data; the paper's rows below. The studies themselves say which they are.

    Args:
        folders: of the studies; for each domain at most one with a threshold and one with a ratio.
        entry: the table.

    Returns:
        The table.

    Raises:
        RecordError: no comparison is there, no cell of it is finished, none has a threshold, or two
            are of one domain and kind.
    """
    studies, paper = load_all(folders, "comparison"), paper_table(entry.file_name)
    glob = [study for study in studies if study.record.setting("threshold", "mft") is not None]
    local = [study for study in studies if study not in glob]
    if not glob:
        raise RecordError(
            f"{studies[0].path}: no comparison with a threshold; run one with threshold"
        )
    one_a_domain(glob)
    one_a_domain(local)
    present = spec_methods(studies)
    lines = [
        Line((label(method),), method, [*local, *glob])
        for method in REFERENCES
        if method in present
    ]
    for kind, masks in (("local", local), ("global", glob)):
        if masks:
            lines.append(Line((_named(kind, masks),), "mft", masks))
    columns = own_columns([*local, *glob])
    own = block("This study", columns, lines, ["method"])
    names = global_names([_named("global", glob)])
    shared = columns_beside(columns, paper)
    beside = [
        both
        for model, rows in paper.cells.groupby("model", sort=False)
        for title in [f"Beside the paper: {model} (in brackets: the distance to FFT)"]
        if (both := beside_rows(title, own, names, shared, rows)) is not None
    ]
    blocks = (
        own,
        *beside,
        printed(
            "The paper: maths (%; in brackets: the distance to FFT)",
            paper,
            ["model", "method"],
            paper.measures,
            grouped=1,
            unranked=("Pre-Trained Model",),
        ),
    )
    notes = (
        SPREAD,
        "Base, FFT and continued FFT: from a domain's comparison with a local ratio, if there is "
        "one, else from that with a threshold."
        if local
        else "No comparison with a local ratio was given to compare with.",
        *study_notes(studies),
        beside_note(beside),
        f"The paper: {paper.source}; bold: the best of each model.",
        *paper.notes,
    )
    return [draw_table(TableFigure(entry.file_name, entry.title, blocks, notes))]


def _named(kind: str, studies: list[MftStudy]) -> str:
    rules = dict.fromkeys(masked(study) for study in studies)
    return f"{kind} MFT ({' or '.join(rules)})" if all(rules) else f"{kind} MFT"
