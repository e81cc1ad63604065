"""The table of a study: a row per cell and metric, in the order of the study. No torch here.

Equal numbers result in a file with equal bytes. The table contains nothing that the journal does
not: only the order of the cells is read from it.
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
"""The columns that follow those of a cell's setting."""


def write_table(
    folder: Path, cells: Sequence[Cell], columns: Sequence[str], order: Sequence[Setting]
) -> None:
    """Write the table of a study.

    Args:
        folder: the study's folder.
        cells: all finished cells.
        columns: the columns of their settings.
        order: settings in the order of the rows; those without a finished cell are left out.

    Raises:
        DeltaLensError: the disk is full, or the folder is not writable.
    """
    finished = {_key(cell.setting, columns): cell for cell in cells}
    ordered = (finished.get(_key(setting, columns)) for setting in order)
    write_whole(folder / TABLE, _table([cell for cell in ordered if cell], columns))


def read_table(folder: Path) -> bytes | None:
    """Read the table of a study.

    Args:
        folder: the study's folder.

    Returns:
        The file's content; None if it cannot be read.

    Raises:
        RecordError: the table is not a regular file.
    """
    try:
        return read_plain(folder / TABLE)
    except OSError:
        return None


def as_in_table(
    folder: Path, raw: bytes | None, cells: list[Cell], columns: Sequence[str]
) -> list[Cell]:
    """Sort cells in the order of the table; the journal has them in the order in which they were
    finished.

    A table that does not match the journal (damaged, or edited) is ignored with a warning; the next
    call of the same study writes it anew.

    Args:
        folder: the study's folder, for the warning.
        raw: the table's content; None if there is no table.
        cells: the cells of the journal.
        columns: the columns of their settings.

    Returns:
        The cells of the table, then those that it does not have.
    """
    if raw is None:
        return cells
    try:
        text = io.StringIO(raw.decode("utf-8"), newline="")
        rows = [tuple(row[: len(columns)]) for row in csv.reader(text)][1:]
    except (ValueError, csv.Error):
        rows = []
    positions_of_row: dict[tuple[str, ...], list[int]] = {}
    for position, (row, _) in enumerate(groupby(rows)):
        positions_of_row.setdefault(row, []).append(position)
    by_key = {_key(cell.setting, columns): cell for cell in cells}
    position_of: dict[tuple[str, ...], int] = {}
    for key in by_key:
        if positions := positions_of_row.get(_row(key)):
            # Different settings can look alike in the table.
            position_of[key] = positions.pop(0) if positions[1:] else positions[0]
    listed = [by_key[key] for key in sorted(position_of, key=position_of.__getitem__)]
    if _table(listed, columns) != raw:
        warnings.warn(
            f"{folder / TABLE}: does not match the journal (damaged, or edited) and is ignored; "
            "the next call of the same study writes it anew",
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
        for name, (value, stderr, n) in cell.metrics.items():
            rows.writerow([*setting, plain_cell(name), repr(value), repr(stderr), n])
    return text.getvalue().encode()


def _key(setting: Setting, columns: Sequence[str]) -> tuple[str, ...]:
    """A setting as texts, independent of the type that JSON gives its values."""
    return tuple("" if setting[name] is None else str(setting[name]) for name in columns)


def _row(key: Sequence[str]) -> tuple[str, ...]:
    """A setting as the table shows it, where different settings can look alike."""
    return tuple(str(plain_cell(part)) for part in key)
