"""A paper's table with the user's numbers: above what a study measured, below what was printed.

A figure makes blocks, `measured` from a tidy frame with a row for each seed and `printed` from a
paper's table, and `draw_table` makes a picture, CSV and Markdown of them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from deltalens.catalog.metrics import HIGHER, Better, is_lower_better
from deltalens.errors import Lines
from deltalens.figures.drawing import Drawing
from deltalens.figures.table_picture import draw_blocks
from deltalens.io.escaping import plain_cell, plain_markdown
from deltalens.io.papers import PaperTable, as_number

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SPREAD",
    "Block",
    "Entry",
    "Measure",
    "TableFigure",
    "draw_table",
    "mark_best",
    "measured",
    "over_seeds",
    "printed",
]

NOTHING = "–"
SPREAD = "Mean ± standard deviation over seeds; bold: the best mean, significant or not."


@dataclass(frozen=True)
class Measure:
    """A column of numbers."""

    name: str
    """In the frame."""
    head: str
    """In the table, with its unit."""
    scale: float = 1.0
    """From the frame's unit to the table's."""
    digits: int = 1
    better: Better | None = None
    """Which way the numbers are better; without one, none is marked as the best."""


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table."""

    text: str
    value: float = math.nan
    """In the unit of the column's head; NaN where there is no number."""
    deviation: float = math.nan
    """Standard deviation over seeds; NaN with one seed."""
    seeds: int = 0
    best: bool = False


@dataclass(frozen=True)
class Block:
    """Rows under one header: a study's, or a paper's."""

    source: str
    """`study` or `paper`."""
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    labels: int = 1
    """So many leading columns name the row."""
    grouped: int = 0
    """Rows that agree in so many leading columns belong together."""


@dataclass(frozen=True)
class TableFigure:
    """A whole table."""

    name: str
    """Of the files, and of the paper's table: `gmt_tab1`."""
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


def over_seeds(values: Iterable[float], measure: Measure) -> Entry:
    """Mean and standard deviation (of a sample, n - 1) of one value a seed. A value that is not
    finite is not left out: it makes the mean so."""
    held = measure.scale * np.asarray(list(values), dtype=float)
    if not held.size:
        return Entry(NOTHING)
    mean = float(held.mean())
    spread = float(held.std(ddof=1)) if held.size > 1 and math.isfinite(mean) else math.nan
    text = f"{mean:.{measure.digits}f}"
    if math.isfinite(spread):
        text += f" ± {spread:.{measure.digits}f}"
    return Entry(text, mean, spread, held.size)


def mark_best(column: Sequence[Entry], digits: int, better: Better | None) -> list[Entry]:
    """A column with its best values marked, equal ones (as shown) alike; of one value, nothing."""
    values = [round(entry.value, digits) for entry in column]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2 or better is None:
        return list(column)
    best = min(finite) if is_lower_better(better) else max(finite)
    return [replace(e, best=value == best) for e, value in zip(column, values, strict=True)]


def measured(
    title: str,
    frame: pd.DataFrame,
    rows: Sequence[tuple[str, ...]],
    labels: Sequence[str],
    measures: Sequence[Measure],
    grouped: int = 0,
) -> Block:
    """A study's block: means over seeds.

    Args:
        title: above the block.
        frame: tidy: the columns of `labels` as text, `metric`, `value`, and `n`; a row for each
            seed.
        rows: which rows, as values of `labels`; one that the frame does not have stays empty.
        labels: the columns that name a row.
        measures: the columns of numbers, each with the `n` it was measured over in its head.
        grouped: rows that agree in so many leading labels are a group, with a best of its own.
    """
    groups = _places(rows, grouped)
    columns = []
    for measure in measures:
        part = frame[frame["metric"] == measure.name]
        of_row = {key: own["value"] for key, own in part.groupby(list(labels), sort=False)}
        entries = [over_seeds(of_row.get(row, ()), measure) for row in rows]
        columns.append(_marked(entries, groups, measure.digits, measure.better))
    lines = tuple(
        (*map(Entry, row), *entries, _count([entry.seeds for entry in entries]))
        for row, entries in zip(rows, zip(*columns, strict=True), strict=True)
    )
    heads = [Lines(measure.head, *_counted(frame, measure)) for measure in measures]
    return Block("study", title, (*labels, *heads, "seeds"), lines, len(labels), grouped)


def _counted(frame: pd.DataFrame, measure: Measure) -> list[str]:
    counts = [int(n) for n in frame[frame["metric"] == measure.name]["n"] if n > 0]
    return [f"n = {_span(counts)}"] if counts else []


def _count(seeds: Sequence[int]) -> Entry:
    return Entry(_span(seeds), float(max(seeds)))


def _span(counts: Iterable[int]) -> str:
    least, *_, most = sorted({*counts}) * 2
    return f"{least}" if least == most else f"{least}–{most}"


def printed(
    title: str,
    table: PaperTable,
    labels: Sequence[str],
    measures: Sequence[str],
    where: dict[str, str] | None = None,
    *,
    grouped: int = 0,
    best: bool = True,
    unranked: Sequence[str] = ("Pre-trained",),
) -> Block:
    """A paper's block: its cells as printed, the best of each group in bold.

    Args:
        title: above the block.
        table: the paper's.
        labels, measures: which of its columns.
        where: only rows with these labels.
        grouped: rows that agree in so many leading labels are a group, with a best of its own.
        best: mark the best, which is the largest.
        unranked: methods that do not compete.
    """
    cells = table.cells
    for column, value in (where or {}).items():
        cells = cells[cells[column] == value]
    keys = [tuple(str(row[name]) for name in labels) for _, row in cells.iterrows()]
    groups = [
        [place for place in group if not {*unranked} & {*keys[place]}]
        for group in _places(keys, grouped)
    ]
    columns = [
        [Entry(_airy(text) or NOTHING, as_number(text)) for text in cells[m]] for m in measures
    ]
    if best:
        columns = [_marked(entries, groups, 9, HIGHER) for entries in columns]
    rows = tuple(
        (*map(Entry, key), *entries)
        for key, entries in zip(keys, zip(*columns, strict=True), strict=True)
    )
    return Block("paper", title, (*labels, *measures), rows, len(labels), grouped)


def _places(rows: Sequence[tuple[str, ...]], grouped: int) -> list[list[int]]:
    """Where the rows of each group stand."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row[:grouped], []).append(place)
    return list(groups.values())


def _marked(
    column: list[Entry],
    groups: list[list[int]],
    digits: int,
    better: Better | None,
) -> list[Entry]:
    marked = list(column)
    for places in groups:
        own = mark_best([column[place] for place in places], digits, better)
        for place, entry in zip(places, own, strict=True):
            marked[place] = entry
    return marked


def _airy(cell: str) -> str:
    return "" if cell == "-" else cell.replace("(", " (")


def draw_table(table: TableFigure) -> Drawing:
    """Draw a table as a picture, and write it as CSV and Markdown.

    Args:
        table: with all its blocks.

    Returns:
        The picture; its `texts` are `csv` and `md`.
    """
    texts = {"csv": _as_csv(table), "md": _as_markdown(table)}
    return Drawing(table.name, draw_blocks(table), texts)


_CSV = ("column", "value", "deviation", "seeds", "best", "text")


def _as_csv(table: TableFigure) -> str:
    """Tidy: a row for each entry; labels that a block does not have are empty."""
    names = dict.fromkeys(name for block in table.blocks for name in block.heads[: block.labels])
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(map(plain_cell, ["source", "block", *names, *_CSV]))
    for block in table.blocks:
        for row in block.rows:
            held = dict(
                zip(block.heads, (entry.text for entry in row[: block.labels]), strict=False)
            )
            labels = [held.get(name, "") for name in names]
            for head, entry in list(zip(block.heads, row, strict=True))[block.labels :]:
                numbers = [_number(entry.value), _number(entry.deviation), entry.seeds or ""]
                where = [block.source, block.title, *labels, _joined(head)]
                rows.writerow(map(plain_cell, [*where, *numbers, int(entry.best), entry.text]))
    return text.getvalue()


def _joined(head: str) -> str:
    """A head on one line; a line end that came with a name stays, to be escaped."""
    return head.replace("\n", ", ") if isinstance(head, Lines) else head


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _as_markdown(table: TableFigure) -> str:
    lines = [f"# {plain_markdown(table.title)}", ""]
    for block in table.blocks:
        lines += [
            f"**{plain_markdown(block.title)}**",
            "",
            _line(map(_joined, block.heads)),
        ]
        sides = [":--" if place < block.labels else "--:" for place in range(len(block.heads))]
        lines.append(_line(sides))
        for row in block.rows:
            lines.append(_line((e.text for e in row), [e.best for e in row]))
        lines.append("")
    return "\n".join(lines + [f"- {plain_markdown(note)}" for note in table.notes]) + "\n"


def _line(cells: Iterable[str], bold: Sequence[bool] = ()) -> str:
    shown = map(plain_markdown, cells)
    marked = (f"**{c}**" if strong else c for c, strong in zip_longest(shown, bold))
    return f"| {' | '.join(marked)} |"
