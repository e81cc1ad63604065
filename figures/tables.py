"""A paper's table with the user's numbers: a study's block above the paper's.

A figure makes blocks, `measured` from a tidy frame with a row for each seed and `printed` from a
paper's table. `draw_table` turns them into a picture, CSV and Markdown.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from deltalens.catalog.metrics import HIGHER, Better, is_lower_better
from deltalens.errors import Lines
from deltalens.figures.drawing import Drawing
from deltalens.figures.latex import as_latex
from deltalens.figures.style import drawn_now
from deltalens.figures.table_picture import draw_blocks
from deltalens.io.escaping import plain_cell, plain_markdown
from deltalens.io.papers import PaperTable, as_deviation, as_number
from deltalens.io.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BESIDE",
    "NOTHING",
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
    "printed_entry",
]

NOTHING = "–"
"""Stands where a table has no number."""
BESIDE = "Beside the paper"
"""Begins the title of a block that sets a study beside a paper, and the note on such blocks."""
_FOLDED = (
    "The paper's own rows are folded away: `deltalens plot --paper` shows them, and so does "
    "`deltalens figure --paper`."
)
SPREAD = "Mean ± standard deviation over seeds; bold: the best mean, whether significant or not."


@dataclass(frozen=True)
class Measure:
    """A column of numbers."""

    name: str
    """The metric's name in the frame."""
    head: str
    """The column's head in the table, with its unit."""
    scale: float = 1.0
    """Factor from the frame's unit to the table's."""
    digits: int = 1
    """Decimal places."""
    better: Better | None = None
    """Whether higher or lower numbers are better; if unknown, none is marked as the best."""


@dataclass(frozen=True)
class Entry:
    """A cell of a table."""

    text: str
    value: float = math.nan
    """In the unit of the column's head; NaN if the cell has no number."""
    deviation: float = math.nan
    """Standard deviation over seeds; NaN with a single seed."""
    seeds: int = 0
    best: bool = False
    """Whether it is shown in bold."""


@dataclass(frozen=True)
class Block:
    """Rows under a header: a study's or a paper's."""

    source: str
    """`study` or `paper`."""
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    labels: int = 1
    """Number of leading columns that name the row."""
    grouped: int = 0
    """Number of leading columns in which the rows of a group agree."""
    foreign: bool = False
    """Whether it sets a study beside another model of a paper's."""


@dataclass(frozen=True)
class TableFigure:
    """A whole table."""

    name: str
    """Name of the files, and of the paper's table: `gmt_tab1`."""
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    paper_notes: tuple[str, ...] = ()
    """On the paper's own block."""
    subject: str = field(default_factory=lambda: drawn_now().subject)
    """Whose numbers it shows: models and data, by their names; empty if nobody said."""


def over_seeds(values: Iterable[float], measure: Measure) -> Entry:
    """Take mean and standard deviation (of a sample, n - 1) over seeds.

    Args:
        values: one for each seed. A value that is not finite makes the mean so.
        measure: how they are shown.

    Returns:
        The cell: `mean ± deviation`.
    """
    scaled = measure.scale * np.asarray(list(values), dtype=float)
    if not scaled.size:
        return Entry(NOTHING)
    mean = float(scaled.mean())
    spread = float(scaled.std(ddof=1)) if scaled.size > 1 and math.isfinite(mean) else math.nan
    text = f"{mean:.{measure.digits}f}"
    if math.isfinite(spread):
        text += f" ± {spread:.{measure.digits}f}"
    return Entry(text, mean, spread, scaled.size)


def mark_best(column: Sequence[Entry], digits: int, better: Better | None) -> list[Entry]:
    """Mark the best cells of a column.

    Args:
        column: the cells.
        digits: decimal places as shown; cells that look equal are marked alike.
        better: whether higher or lower numbers are better; None marks nothing.

    Returns:
        The same cells; none is marked where all are equal, or where there is one alone.
    """
    values = [round(entry.value, digits) for entry in column]
    finite = {value for value in values if math.isfinite(value)}
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
    """Make a study's block: means over seeds.

    Args:
        title: above the block.
        frame: tidy, a row for each seed: the columns of `labels` as text, `metric`, `value` and
            `n`.
        rows: the rows, as values of `labels`; one that is missing in the frame stays empty.
        labels: the columns that name a row.
        measures: the columns of numbers; each head says the `n` that it was measured on.
        grouped: number of leading labels in which the rows of a group agree; each group has its own
            best.

    Returns:
        The block.
    """
    groups = _groups(rows, grouped)
    columns = []
    for measure in measures:
        part = frame[frame["metric"] == measure.name]
        of_row = {key: seeds["value"] for key, seeds in part.groupby(list(labels), sort=False)}
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
    """Make a paper's block: its cells as printed, the best of each group in bold.

    Args:
        title: above the block.
        table: the paper's.
        labels, measures: the columns to show.
        where: label -> its value in the rows to show.
        grouped: number of leading labels in which the rows of a group agree; each group has its own
            best.
        best: whether to mark the best, which is the largest.
        unranked: methods that do not compete.

    Returns:
        The block.
    """
    cells = table.cells
    for column, value in (where or {}).items():
        cells = cells[cells[column] == value]
    keys = [tuple(str(row[name]) for name in labels) for _, row in cells.iterrows()]
    groups = [
        [index for index in group if not {*unranked} & {*keys[index]}]
        for group in _groups(keys, grouped)
    ]
    columns = [[printed_entry(text) for text in cells[measure]] for measure in measures]
    if best:
        columns = [_marked(entries, groups, 9, HIGHER) for entries in columns]
    rows = tuple(
        (*map(Entry, key), *entries)
        for key, entries in zip(keys, zip(*columns, strict=True), strict=True)
    )
    return Block("paper", title, (*labels, *measures), rows, len(labels), grouped)


def printed_entry(cell: str) -> Entry:
    """Make a cell of a paper's table.

    Args:
        cell: as printed.

    Returns:
        The cell, with its number and its standard deviation if it has any.

    Raises:
        DeltaLensError: it is no cell of a paper's table.
    """
    return Entry(_airy(cell) or NOTHING, as_number(cell), as_deviation(cell))


def _groups(rows: Sequence[tuple[str, ...]], grouped: int) -> list[list[int]]:
    """The indices of each group's rows."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row[:grouped], []).append(index)
    return list(groups.values())


def _marked(
    column: list[Entry],
    groups: list[list[int]],
    digits: int,
    better: Better | None,
) -> list[Entry]:
    marked = list(column)
    for group in groups:
        entries = mark_best([column[index] for index in group], digits, better)
        for index, entry in zip(group, entries, strict=True):
            marked[index] = entry
    return marked


def _airy(cell: str) -> str:
    return "" if cell == "-" else cell.replace("(", " (").replace("±", " ± ")


def draw_table(table: TableFigure) -> Drawing:
    """Draw a table as a picture, and write it as CSV, Markdown and LaTeX. The paper's own rows are
    folded away where they are not asked for.

    Args:
        table: with all its blocks.

    Returns:
        The picture; its `texts` are `csv`, `md` and `tex`.
    """
    table = _unfolded(table) if drawn_now().paper_rows else _folded(table)
    latex = as_latex(table)
    if not drawn_now().titles:
        table = replace(table, subject="")
    texts = {"csv": _as_csv(table), "md": _as_markdown(table), "tex": latex}
    shown = [
        Table(block.title, block.heads, tuple(tuple(e.text for e in row) for row in block.rows))
        for block in table.blocks
    ]
    return Drawing(table.name, draw_blocks(table), texts, shown)


def _unfolded(table: TableFigure) -> TableFigure:
    return replace(table, notes=(*table.notes, *table.paper_notes), paper_notes=())


def _folded(table: TableFigure) -> TableFigure:
    """Without the paper's own block, and those beside models that are not the study's; all of
    them, if the study has none."""
    own = tuple(block for block in table.blocks if block.source != "paper" and not block.foreign)
    if len(own) in (0, len(table.blocks)):
        return _unfolded(table)
    lost = any(block.foreign for block in table.blocks)
    lost = lost and not any(block.title.startswith(BESIDE) for block in own)
    notes = tuple(note for note in table.notes if not (lost and note.startswith(BESIDE)))
    return replace(table, blocks=own, notes=(*notes, _FOLDED), paper_notes=())


_CSV = ("column", "value", "deviation", "seeds", "best", "text")


def _as_csv(table: TableFigure) -> str:
    """Tidy: a row for each cell; labels that a block does not have are empty."""
    names = dict.fromkeys(name for block in table.blocks for name in block.heads[: block.labels])
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(map(plain_cell, ["source", "block", *names, *_CSV]))
    for block in table.blocks:
        for row in block.rows:
            named = dict(
                zip(block.heads, (entry.text for entry in row[: block.labels]), strict=False)
            )
            labels = [named.get(name, "") for name in names]
            for head, entry in list(zip(block.heads, row, strict=True))[block.labels :]:
                numbers = [_number(entry.value), _number(entry.deviation), entry.seeds or ""]
                where = [block.source, block.title, *labels, _joined(head)]
                rows.writerow(map(plain_cell, [*where, *numbers, int(entry.best), entry.text]))
    return text.getvalue()


def _joined(head: str) -> str:
    """A head on one line. A line end that came with a name stays, and is escaped later."""
    return head.replace("\n", ", ") if isinstance(head, Lines) else head


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _as_markdown(table: TableFigure) -> str:
    lines = [f"# {plain_markdown(table.title)}", ""]
    if table.subject:
        lines += [plain_markdown(table.subject), ""]
    for block in table.blocks:
        lines += [
            f"**{plain_markdown(block.title)}**",
            "",
            _line(map(_joined, block.heads)),
        ]
        sides = [":--" if column < block.labels else "--:" for column in range(len(block.heads))]
        lines.append(_line(sides))
        for row in block.rows:
            lines.append(_line((e.text for e in row), [e.best for e in row]))
        lines.append("")
    return "\n".join(lines + [f"- {plain_markdown(note)}" for note in table.notes]) + "\n"


def _line(cells: Iterable[str], bold: Sequence[bool] = ()) -> str:
    shown = map(plain_markdown, cells)
    marked = (f"**{c}**" if strong else c for c, strong in zip_longest(shown, bold))
    return f"| {' | '.join(marked)} |"
