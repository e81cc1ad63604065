"""Every domain's models on every data set: of what MFT's Tables 5 and 6 are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from deltalens.figures.tables import SPREAD, TableFigure, printed, write
from deltalens.io.papers import paper_table

__all__ = ["draw_across"]


def draw_across(folders: Sequence[str | Path], name: str, title: str) -> list[Path]:
    """Write comparisons of several domains as a table: for each metric a block, the models of each
    domain down, all data sets across; the paper's rows below.

    Args:
        folders: of the studies, a domain each; the table is written to the first. The base is the
            same to all of them and is taken from the first that measured it.
        name: of the files, and of the paper's table.
        title: of the table.

    Raises:
        RecordError: a folder without a comparison or a finished cell; two studies of one domain;
            studies of different data with the same name.
    """
    studies, paper = load_all(folders, "comparison"), paper_table(name)
    one_a_domain(studies)
    columns = dict.fromkeys(
        Column(data, metric)
        for study in studies
        for data, metrics in study.sets.items()
        for metric in metrics
    )
    lines = _lines(studies)
    blocks = [
        block(
            f"This study: {measure(name).head}",
            [column for column in columns if column.name == name],
            lines,
            ["trained on", "method"],
            grouped=1,
        )
        for name in dict.fromkeys(column.name for column in columns)
    ]
    unranked = ("[Lower Bound] Base Model",)
    blocks.append(printed("The paper (%)", paper, ["method"], paper.measures, unranked=unranked))
    notes = (
        SPREAD,
        "This study's rows are grouped by the domain that a model was trained on (the paper's by "
        "method), and the best of a group is marked.",
        *study_notes(studies),
        f"The paper: {paper.source}; bold: the best of a column.",
        *paper.notes,
    )
    return write(TableFigure(name, title, tuple(blocks), notes), studies[0].path)


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
