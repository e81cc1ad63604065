"""The engine of every study: cells in order, a journal, resume, and the caller's view of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.fingerprint import take_fingerprints
from deltalens.io.records import Cell, Setting, StudyFolder
from deltalens.scoring.suite import Metrics, Suite
from deltalens.studies.executors import (
    Executor,
    Recipe,
    Worker,
    find_executor,
    sequential,
    why_it_stays,
)

__all__ = ["StudyWatch", "keep_better", "read_weights", "run_cells"]

CellsOf = Callable[[Setting, Any], Sequence[tuple[Setting, Metrics]]]
"""From a point and what was found there to the cells that are journalled of it, together."""
_SECONDS = 0.5


@dataclass
class StudyWatch:
    """How a study tells what it is doing; every hook may be left as it is."""

    stage: Callable[[str, int | None], None] = field(default=lambda name, total: None)
    """A stage begins: its name, and its number of steps if known."""
    advance: Callable[[int], None] = field(default=lambda steps: None)
    """So many steps of the stage are done."""
    within: Callable[[float], None] = field(default=lambda cells: None)
    """How far the running cells are, all together, in cells."""
    on_cell: Callable[[Path, Cell], None] = field(default=lambda folder, cell: None)
    """A cell has been journalled: the study's folder and the cell."""


def read_weights(watch: StudyWatch, *checkpoints: Checkpoint) -> None:
    """Take the fingerprints that a study's identity needs, with progress."""
    take_fingerprints(checkpoints, watch.stage, lambda done, total: watch.advance(1))


def keep_better(folder: StudyFolder, suite: Suite) -> None:
    """Write down which way the caller's metrics are better. It decides no number, so it is no part
    of what was asked: a later call may say it for the first time, or say otherwise."""
    if suite.better:
        folder.facts["better"] = suite.better
        folder.write_manifest()


def run_cells(
    folder: StudyFolder,
    points: Sequence[Setting],
    recipe: Recipe[Any] | None,
    here: Worker[Any],
    watch: StudyWatch,
    *,
    same: Callable[[Setting], str | None] = lambda setting: None,
    after: Callable[[Setting], str | None] = lambda setting: None,
    cells_of: CellsOf = lambda setting, found: [(setting, found)],
    is_done: Callable[[Setting], bool] | None = None,
    write_table: Callable[[], None] | None = None,
    called: str = "cells",
    jobs: int = 1,
    executor: str | None = None,
) -> None:
    """Measure what is not journalled yet, in order; write the table, also when interrupted.

    Args:
        folder: open for writing.
        points: the settings of all cells; or what several cells have in common that are measured
            together.
        recipe: prepares a worker in another process. None: only this one can measure.
        here: a worker that is prepared in this process; whoever calls closes it.
        watch: told of every cell.
        same: a name for cells that are one and the same point (rate 0 of every strategy is the
            fine-tune): it is measured once, and journalled for each. None: a point of its own.
        after: the point that a cell builds on; it waits until that one is measured.
        cells_of: what is journalled of a point; a cell of the metrics that were found, if not
            given.
        is_done: whether nothing is left to measure at a point; if not given, whether its cell is
            journalled.
        write_table: writes it; the cells in the order of the points, if not given.
        called: what the points are, for whoever watches.
        jobs: cells that are measured at once.
        executor: by whom (`find_executor`).

    Raises:
        DeltaLensError: no such executor, or a process was killed.
    """
    done = {repr(cell.setting) for cell in folder.cells}
    if is_done is None:
        is_done = lambda setting: repr(setting) in done  # noqa: E731
    known = {same(cell.setting): cell.metrics for cell in folder.cells}
    todo = [setting for setting in points if not is_done(setting)]
    running: dict[Future[tuple[Any, float]], Setting] = {}
    jobs, take = _executor(folder, recipe, executor, jobs, len(todo))

    def journal(setting: Setting, made: Sequence[tuple[Setting, Metrics]], seconds: float) -> None:
        known[same(setting)] = made[0][1] if made else {}
        cells = [Cell(each, metrics, seconds) for each, metrics in made]
        # Together: a point is journalled with all its cells or, if the line tears, redone.
        folder.extend(cells)
        for cell in cells:
            watch.on_cell(folder.path, cell)
        watch.advance(1)

    def next_one() -> Setting | None:
        """The first cell whose point nobody is measuring, and whose ground is laid."""
        busy = {same(setting) for setting in running.values()} - {None}
        for setting in todo:
            if same(setting) not in busy and after(setting) in (None, *known):
                return setting
        return None if running else todo[0]

    watch.stage(called, len(points))
    watch.advance(len(points) - len(todo))
    try:
        with take(recipe, here, jobs, watch.within) as hands:  # type: ignore[arg-type]
            while todo or running:
                while todo and len(running) < jobs and (setting := next_one()) is not None:
                    todo.remove(setting)
                    point = same(setting)
                    if point is not None and point in known:
                        journal(setting, [(setting, known[point])], 0.0)
                    else:
                        running[hands.start(setting)] = setting
                finished, _ = wait(running, _SECONDS, FIRST_COMPLETED)
                hands.listen()
                for future in finished:
                    setting, (found, seconds) = running.pop(future), future.result()
                    journal(setting, cells_of(setting, found), seconds)
    except BrokenExecutor as error:
        raise DeltaLensError(
            "a process that measured a cell was killed (out of memory?): finished cells are kept, "
            "and the same study with fewer jobs goes on"
        ) from error
    finally:
        (write_table or (lambda: folder.write_table(points)))()


def _executor(
    folder: StudyFolder, recipe: Recipe[Any] | None, name: str | None, jobs: int, left: int
) -> tuple[int, Executor]:
    """How many cells are measured at once, and by whom; in this process, with a note, where what is
    measured cannot be taken to another."""
    found = find_executor(name, jobs)
    if recipe is None or not left or found is sequential:
        return 1, sequential
    why = why_it_stays(recipe)
    if why is not None:
        notes, said = folder.facts.setdefault("notes", []), f"measured in one process: {why}"
        if said not in notes:
            notes.append(said)
            folder.write_manifest()
        return 1, sequential
    return min(jobs, left), found
