"""The table of a study: a row per cell and metric, in the study's own order. No torch here.

It repeats byte for byte whenever the numbers do, and says nothing that the journal does not: what
is read of it is the order of the cells.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from deltalens.io.escaping import plain_cell
from deltalens.io.files import read_plain, write_whole
from deltalens.io.records.journal import Cell, Setting

__all__ = ["TABLE", "VALUES", "as_in_table", "read_table", "write_table"]

TABLE = "cells.csv"
VALUES = ("metric", "value", "stderr", "n")
"""The columns behind those of a cell's setting."""


def write_table(
    folder: Path, cells: Sequence[Cell], columns: Sequence[str], order: Sequence[Setting]
) -> None:
    """Write the table of a study.

    Args:
        folder: of the study.
        cells: all that are finished.
        columns: of their settings.
        order: the settings of the rows; those of which no cell is finished are left out.
    """
    done = {_key(cell.setting, columns): cell for cell in cells}
    found = (done.get(_key(setting, columns)) for setting in order)
    write_whole(folder / TABLE, _table([cell for cell in found if cell], columns))


def read_table(folder: Path) -> bytes | None:
    """The table as it lies there; None where it cannot be read."""
    try:
        return read_plain(folder / TABLE)
    except OSError:
        return None


def as_in_table(
    folder: Path, raw: bytes | None, cells: list[Cell], columns: Sequence[str]
) -> list[Cell]:
    """Cells in the order of the table: those that ran side by side are journalled as they finish.

    The table says nothing that the journal does not: where it says something else (it was damaged,
    or edited) it is passed over, with a warning, and the next call of its study writes it anew.
    """
    if raw is None:
        return cells
    try:
        text = io.StringIO(raw.decode("utf-8"), newline="")
        rows = [tuple(row[: len(columns)]) for row in csv.reader(text)][1:]
    except (ValueError, csv.Error):
        rows = []
    order: dict[tuple[str, ...], list[int]] = {}
    for place, (row, _) in enumerate(groupby(rows)):
        order.setdefault(row, []).append(place)
    last = {_key(cell.setting, columns): cell for cell in cells}
    places: dict[tuple[str, ...], int] = {}
    for key in last:
        if there := order.get(_row(key)):
            # Settings that differ can look alike in the table.
            places[key] = there.pop(0) if there[1:] else there[0]
    listed = [last[key] for key in sorted(places, key=places.__getitem__)]
    if _table(listed, columns) != raw:
        warnings.warn(
            f"{folder / TABLE}: not the table of its journal (damaged, or edited): passed over; "
            "the same study, asked again, writes it anew",
            stacklevel=3,
        )
        return cells
    in_table = {id(cell) for cell in listed}
    return listed + [cell for cell in cells if id(cell) not in in_table]


def _table(cells: Sequence[Cell], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*columns, *VALUES])
    for cell in cells:
        setting = _row(_key(cell.setting, columns))
        for name, m in cell.metrics.items():
            rows.writerow([*setting, plain_cell(name), repr(m.value), repr(m.stderr), m.n])
    return text.getvalue().encode()


def _key(setting: Setting, columns: Sequence[str]) -> tuple[str, ...]:
    """A setting as text: values that look alike are one, whichever type JSON gives them."""
    return tuple("" if setting[name] is None else str(setting[name]) for name in columns)


def _row(key: Sequence[str]) -> tuple[str, ...]:
    """A setting as the table shows it: what differs can look alike there."""
    return tuple(str(plain_cell(part)) for part in key)
