"""MFT, Table 3: masks by a global threshold beside masks by a local ratio (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.catalog.methods import REFERENCES
from deltalens.errors import RecordError
from deltalens.figures.beside import beside_note, beside_rows, is_foreign, models_beside
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
from deltalens.figures.tables import SPREAD, Block, TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw comparisons with a global threshold as a table, beside those with a local ratio, each
    domain on its own data; the paper's rows below. The studies themselves say which they are.

    Args:
        folders: of the studies; for each domain and model at most one with a threshold and one with
            a ratio.
        entry: the table.

    Returns:
        The table.

    Raises:
        RecordError: no comparison is there, no cell of it is finished, none has a threshold, or two
            are of one model, domain and kind.
    """
    studies, paper = load_all(folders, "comparison"), paper_table(entry.file_name)
    if not _kinds(studies)["global"]:
        raise RecordError(
            f"{studies[0].path}: no comparison with a threshold; run one with threshold"
        )
    own: list[Block] = []
    beside: list[Block] = []
    for model, part in _by_model(studies).items():
        where = f": {model}" if model else ""
        made = _block(f"This study{where}", part)
        own.append(made)
        names = global_names([_named("global", _kinds(part)["global"])])
        shared = columns_beside(own_columns(part), paper)
        for printed_model in models_beside(part[0].record.model, paper.cells):
            title = f"Beside the paper{where}: {printed_model} (in brackets: the distance to FFT)"
            rows = paper.cells[paper.cells["model"] == printed_model]
            both = beside_rows(title, made, names, shared, rows)
            if both is not None:
                foreign = is_foreign([study.record for study in part], printed_model)
                beside.append(replace(both, foreign=foreign))
    blocks = (
        *own,
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
        if _kinds(studies)["local"]
        else "No comparison with a local ratio was given to compare with.",
        *study_notes(studies),
        beside_note(beside),
    )
    paper_notes = (f"The paper: {paper.source}; bold: the best of each model.", *paper.notes)
    return [draw_table(TableFigure(entry.file_name, entry.title, blocks, notes, paper_notes))]


def _kinds(studies: Sequence[MftStudy]) -> dict[str, list[MftStudy]]:
    """Those with a local ratio, and those with a global threshold."""
    kinds: dict[str, list[MftStudy]] = {"local": [], "global": []}
    for study in studies:
        threshold = study.record.setting("threshold", "mft")
        kinds["local" if threshold is None else "global"].append(study)
    return kinds


def _by_model(studies: Sequence[MftStudy]) -> dict[str, list[MftStudy]]:
    """The studies of each model; all under no name, where no two would fill the same cells."""
    kinds = _kinds(studies).values()
    if all(len({study.domain for study in kind}) == len(kind) for kind in kinds):
        return {"": [*studies]}
    found: dict[str, list[MftStudy]] = {}
    for study in studies:
        found.setdefault(study.record.model, []).append(study)
    return found


def _block(title: str, studies: Sequence[MftStudy]) -> Block:
    kinds = _kinds(studies)
    for kind in kinds.values():
        one_a_domain(kind)
    in_turn = [*kinds["local"], *kinds["global"]]
    present = spec_methods(studies)
    lines = [Line((label(method),), method, in_turn) for method in REFERENCES if method in present]
    for name, masks in kinds.items():
        if masks:
            lines.append(Line((_named(name, masks),), "mft", masks))
    return block(title, own_columns(in_turn), lines, ["method"])


def _named(kind: str, studies: list[MftStudy]) -> str:
    rules = dict.fromkeys(masked(study) for study in studies)
    return f"{kind} MFT ({' or '.join(rules)})" if all(rules) else f"{kind} MFT"
