"""MFT, Table 4: the data of each domain (2503.22764)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from deltalens.figures.beside import NO_BENCHMARK, Pair, beside_block
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_studies import MftStudy, load_all
from deltalens.figures.paper_points import benchmark_of
from deltalens.figures.tables import NOTHING, Block, Entry, TableFigure, draw_table
from deltalens.io.papers import paper_table

__all__ = ["draw"]

_LABELS = ("domain", "setting", "data")


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the data of comparisons as a table: what each was trained and measured on, with the
    number of rows; the paper's below.

    Args:
        folders: of comparisons, such as one for each domain.
        entry: the table.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no comparison, or no cell of it is finished.
    """
    studies, paper = load_all(folders, "comparison"), paper_table(entry.file_name)
    (samples,) = paper.measures
    heads = (*_LABELS, "rows")
    own = dict.fromkeys(row for study in studies for row in _rows(study))
    printed = [
        (*(str(row[name]) for name in _LABELS), str(row[samples]))
        for _, row in paper.cells.iterrows()
    ]
    blocks = [
        Block(source, title, heads, tuple(tuple(map(Entry, row)) for row in rows), 3, 1)
        for source, title, rows in (
            ("study", "This study", own),
            ("paper", "The paper", printed),
        )
    ]
    both = _beside([*own], printed)
    if both is not None:
        blocks.insert(1, both)
    notes = (
        "Beside the paper: rows of the benchmarks that both have, by the names of the data."
        if both is not None
        else NO_BENCHMARK,
    )
    paper_notes = (f"The paper: {paper.source}.", *paper.notes)
    return [
        draw_table(TableFigure(entry.file_name, entry.title, tuple(blocks), notes, paper_notes))
    ]


def _beside(own: Sequence[Sequence[str]], printed: Sequence[Sequence[str]]) -> Block | None:
    """Rows of the paper's benchmarks, here and there."""
    theirs = {benchmark_of(row[2]): row[3] for row in printed if row[1] == "Test"}
    common = [row for row in own if row[1] == "Test" and benchmark_of(row[2]) in theirs]
    ours = [_count(row[3]) for row in common]
    of_paper = [_count(theirs[benchmark_of(row[2])]) for row in common]
    labels = [(row[0], row[2]) for row in common]
    pair = Pair("rows", ours, of_paper, form="+,.0f")
    return beside_block("Beside the paper", ("domain", "data"), labels, [pair])


def _count(text: str) -> Entry:
    return Entry(text, math.nan if text == NOTHING else float(text.replace(",", "")))


def _rows(study: MftStudy) -> Iterator[tuple[str, ...]]:
    spec = study.record.spec
    trained = [spec["data"]] if spec.get("data") else []
    for setting, files in (("Train", trained), ("Test", spec.get("eval_data") or [])):
        for name, *rest in files:
            count = f"{rest[0]:,}" if rest and isinstance(rest[0], int) else NOTHING
            yield study.domain, setting, str(name), count
