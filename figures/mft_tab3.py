"""MFT, Table 3: masks by a global threshold beside masks by a local ratio (2503.22764)."""

from __future__ import annotations

from pathlib import Path

from deltalens.catalog.methods import REFERENCES
from deltalens.errors import RecordError
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
from deltalens.figures.tables import SPREAD, TableFigure, printed, write
from deltalens.io.papers import paper_table

__all__ = ["draw"]


def draw(folder: str | Path, *more: str | Path) -> list[Path]:
    """Write comparisons with a global threshold as a table, beside those with a local ratio, each
    domain on its own data; the paper's rows below. Which are which is read from the studies.

    Args:
        folder: of a comparison; `mft_tab3.csv`, `.md`, `.png` and `.svg` are written there.
        more: further ones; of each domain at most one with a threshold and one with a ratio.

    Raises:
        RecordError: no comparison there, no finished cell, none with a threshold, or two of one
            domain and kind.
    """
    studies, paper = load_all([folder, *more], "comparison"), paper_table("mft_tab3")
    glob = [study for study in studies if study.record.setting("threshold", "mft") is not None]
    local = [study for study in studies if study not in glob]
    if not glob:
        raise RecordError(f"{studies[0].path}: no comparison with a threshold: train it with one")
    one_a_domain(glob)
    one_a_domain(local)
    present = spec_methods(studies)
    lines = [Line((label(one),), one, [*local, *glob]) for one in REFERENCES if one in present]
    for kind, own in (("local", local), ("global", glob)):
        if own:
            lines.append(Line((_named(kind, own),), "mft", own))
    blocks = (
        block("This study", own_columns([*local, *glob]), lines, ["method"]),
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
        "Base, FFT and continued FFT stand as the first study of a domain measured them, local "
        "before global."
        if local
        else "No comparison with a local ratio was named to hold this one against.",
        *study_notes(studies),
        f"The paper: {paper.source}; bold: the best of a model.",
        *paper.notes,
    )
    title = "MFT, Table 3: a global threshold and a local ratio"
    return write(TableFigure("mft_tab3", title, blocks, notes), studies[0].path)


def _named(kind: str, studies: list[MftStudy]) -> str:
    rules = dict.fromkeys(masked(study) for study in studies)
    return f"{kind} MFT ({' or '.join(rules)})" if all(rules) else f"{kind} MFT"
