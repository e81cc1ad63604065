"""Tables that were drawn, read back from their CSV files."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

from deltalens.figures import draw_figure

Row = dict[str, str]
draw_whole = partial(draw_figure, paper=True)
"""Draw a table with the rows that are folded away otherwise."""


def rows_of(folder: Path, name: str, block: str = "This study") -> list[Row]:
    """The cells of a block.

    Args:
        folder: in which the table was drawn.
        name: of the table's files.
        block: its title.
    """
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["block"] == block]


def entry(rows: list[Row], column: str, **labels: str) -> Row:
    """The one cell of a row, in the column that begins so."""
    (found,) = [
        row for row in rows if row["column"].startswith(column) and labels.items() <= row.items()
    ]
    return found
