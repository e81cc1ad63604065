"""The engine of every study: cells in order, a journal, resuming, and progress for the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.fingerprint import take_fingerprints
from deltalens.io.records import Cell, Setting, StudyFolder
from deltalens.scoring.planning import StudyPlan
from deltalens.scoring.suite import Metrics, Suite
from deltalens.studies.executors import (
    Executor,
    Recipe,
    Worker,
    find_executor,
    local_reason,
    sequential,
)

__all__ = ["StudyWatch", "count_points", "keep_better", "read_weights", "run_cells"]

CellsOf = Callable[[Setting, Any], Sequence[tuple[Setting, Metrics]]]
"""(point, what its worker measured) -> the cells to be journalled for it, together."""
_POLL_SECONDS = 0.5


@dataclass
class StudyWatch:
    """Callbacks through which a study reports its progress; each is optional."""

    stage: Callable[[str, int | None], None] = field(default=lambda name, total: None)
    """A stage begins: its name, and its number of steps (None: unknown)."""
    advance: Callable[[int], None] = field(default=lambda steps: None)
    """This many further steps of the stage are done."""
    within: Callable[[float], None] = field(default=lambda cells: None)
    """Progress within the running cells: the sum of their completed fractions, in cells."""
    on_cell: Callable[[Path, Cell], None] = field(default=lambda folder, cell: None)
    """A cell has been journalled: the study's folder, and the cell."""
    on_plan: Callable[[StudyPlan], None] | None = None
    """All arguments are checked and nothing has begun: what the study will require."""


def read_weights(watch: StudyWatch, *checkpoints: Checkpoint) -> None:
    """Compute the fingerprints that a study's identity contains, and report progress.

    Args:
        watch: told of stages and progress.
        checkpoints: all models of the study.
    """
    take_fingerprints(checkpoints, watch.stage, lambda done, total: watch.advance(1))


def keep_better(folder: StudyFolder, suite: Suite) -> None:
    """Record which direction of the caller's metrics is better.

    It changes no number and so is no part of the study's identity: a later call may add it or
    change it.

    Args:
        folder: the study's folder, open for writing.
        suite: what is measured.
    """
    if suite.better:
        folder.facts["better"] = suite.better
        folder.write_manifest()


def count_points(settings: Iterable[Setting], point_of: Callable[[Setting], str | None]) -> int:
    """Count the models that a study measures.

    Args:
        settings: of all its cells.
        point_of: as `run_cells` takes it.

    Returns:
        How many: cells that share a point are measured once.
    """
    return len({point_of(setting) or repr(setting) for setting in settings})


def run_cells(
    folder: StudyFolder,
    points: Sequence[Setting],
    recipe: Recipe[Any] | None,
    local: Worker[Any],
    watch: StudyWatch,
    *,
    point_of: Callable[[Setting], str | None] = lambda setting: None,
    requires: Callable[[Setting], str | None] = lambda setting: None,
    cells_of: CellsOf = lambda setting, measured: [(setting, measured)],
    is_done: Callable[[Setting], bool] | None = None,
    write_table: Callable[[], None] | None = None,
    unit: str = "cells",
    jobs: int = 1,
    executor: str | None = None,
) -> None:
    """Measure the cells that are not journalled yet, in order; write the table, also when
    interrupted.

    Args:
        folder: the study's folder, open for writing.
        points: the settings of all cells; or, if several cells are measured together, what the
            settings of each such group have in common.
        recipe: prepares workers in other processes; None: only `local` can measure.
        local: a worker in this process; the caller closes it.
        watch: told of every cell.
        point_of: a name that cells share if they are the same model (at rate 0 every strategy is
            the fine-tune): it is measured once, and journalled for each. None: no other cell is the
            same.
        requires: the name (`point_of`) of a point that has to be measured before the cell; None:
            the cell requires no other.
        cells_of: the cells to be journalled for a point; default: one with the metrics measured.
        is_done: whether nothing is left to measure at a point; default: its cell is journalled.
        write_table: writes the table; default: the cells in the order of `points`.
        unit: what the points are called in progress reports.
        jobs: points that are measured at the same time.
        executor: name of what measures them (`find_executor`).

    Raises:
        DeltaLensError: there is no such executor, or a worker process was killed.
    """
    done = {repr(cell.setting) for cell in folder.cells}
    if is_done is None:
        is_done = lambda setting: repr(setting) in done  # noqa: E731
    measured_points = {point_of(cell.setting): cell.metrics for cell in folder.cells}
    todo = [setting for setting in points if not is_done(setting)]
    running: dict[Future[tuple[Any, float]], Setting] = {}
    jobs, execute = _choose_executor(folder, recipe, executor, jobs, len(todo))

    def journal(setting: Setting, new: Sequence[tuple[Setting, Metrics]], seconds: float) -> None:
        measured_points[point_of(setting)] = new[0][1] if new else {}
        cells = [Cell(cell_setting, metrics, seconds) for cell_setting, metrics in new]
        # In one write: if it is torn, the whole point is measured again.
        folder.extend(cells)
        for cell in cells:
            watch.on_cell(folder.path, cell)
        watch.advance(1)

    def next_setting() -> Setting | None:
        """The first cell that nobody is measuring under another setting, and whose requirement is
        met."""
        busy = {point_of(setting) for setting in running.values()} - {None}
        for setting in todo:
            if point_of(setting) not in busy and requires(setting) in (None, *measured_points):
                return setting
        return None if running else todo[0]

    watch.stage(unit, len(points))
    watch.advance(len(points) - len(todo))
    try:
        with execute(recipe, local, jobs, watch.within) as pool:  # type: ignore[arg-type]
            while todo or running:
                while todo and len(running) < jobs and (setting := next_setting()) is not None:
                    todo.remove(setting)
                    point = point_of(setting)
                    if point is not None and point in measured_points:
                        journal(setting, [(setting, measured_points[point])], 0.0)
                    else:
                        running[pool.start(setting)] = setting
                finished, _ = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
                pool.listen()
                for future in finished:
                    setting, (measured, seconds) = running.pop(future), future.result()
                    journal(setting, cells_of(setting, measured), seconds)
    except BrokenExecutor as error:
        raise DeltaLensError(
            "a worker process was killed (out of memory?); finished cells are kept: run the same "
            "study again with fewer jobs to continue"
        ) from error
    finally:
        (write_table or (lambda: folder.write_table(points)))()


def _choose_executor(
    folder: StudyFolder, recipe: Recipe[Any] | None, name: str | None, jobs: int, left: int
) -> tuple[int, Executor]:
    """The number of jobs, and the executor: this process alone, with a note in the records, if the
    recipe cannot be sent to another one."""
    executor = find_executor(name, jobs)
    if recipe is None or not left or executor is sequential:
        return 1, sequential
    reason = local_reason(recipe)
    if reason is not None:
        notes, note = folder.facts.setdefault("notes", []), f"measured in one process: {reason}"
        if note not in notes:
            notes.append(note)
            folder.write_manifest()
        return 1, sequential
    return min(jobs, left), executor
