"""The engine of every study: cells in order, a journal, resume, and the caller's view of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltalens.io.records import Cell, Measurement, Setting, StudyFolder

__all__ = ["Metrics", "StudyWatch", "run_cells"]

Metrics = dict[str, Measurement]


@dataclass
class StudyWatch:
    """How a study tells what it is doing; every hook may be left as it is."""

    stage: Callable[[str, int | None], None] = field(default=lambda name, total: None)
    """A stage begins: its name, and its number of steps if known."""
    advance: Callable[[int], None] = field(default=lambda steps: None)
    """So many steps of the stage are done."""
    on_cell: Callable[[Path, Cell], None] = field(default=lambda folder, cell: None)
    """A cell has been journalled: the study's folder and the cell."""


def run_cells(
    folder: StudyFolder,
    cells: Sequence[Setting],
    measure: Callable[[Setting], Metrics],
    watch: StudyWatch,
    same: Callable[[Setting], str | None] = lambda setting: None,
) -> None:
    """Measure what is not journalled yet, in order; write the table, also when interrupted.

    Args:
        folder: open for writing.
        cells: the settings of all cells.
        measure: makes and evaluates one cell.
        watch: told of every cell.
        same: a name for cells that are one and the same point (rate 0 of every strategy is the
            fine-tune): it is measured once, and journalled for each. None: a point of its own.
    """
    done = {repr(cell.setting): cell for cell in folder.cells}
    known = {same(cell.setting): cell.metrics for cell in folder.cells}
    watch.stage("cells", len(cells))
    try:
        for setting in cells:
            if repr(setting) not in done:
                begun = time.perf_counter()
                point = same(setting)
                metrics = known[point] if point in known and point is not None else measure(setting)
                known[point] = metrics
                cell = Cell(setting, metrics, time.perf_counter() - begun)
                folder.append(cell)
                watch.on_cell(folder.path, cell)
            watch.advance(1)
    finally:
        folder.write_table(cells)
