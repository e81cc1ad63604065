"""The engine of every study: cells in order, a journal, resuming, and progress for the caller."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.fingerprint import take_fingerprints
from deltalens.io.records import TASK_COSTS, Cell, Setting, StudyFolder
from deltalens.scoring.planning import StudyPlan
from deltalens.scoring.suite import Suite
from deltalens.scoring.tasks.scoring import StandardTasks
from deltalens.studies.executors import Execution, Executor, Recipe, Worker
from deltalens.studies.executors.local import sequential
from deltalens.studies.ledger import CellsOf, Ledger

__all__ = [
    "HERE",
    "StudyWatch",
    "count_points",
    "keep_better",
    "keep_costs",
    "read_weights",
    "run_cells",
]

_POLL_SECONDS = 0.5
HERE = Execution()
"""This process alone, one cell after the other."""


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


def keep_costs(folder: StudyFolder, tasks: StandardTasks | None) -> None:
    """Record what standard tasks took beside the model: building the requests, once, and in each
    cell the harness. These are no part of the study's identity. A call that measures nothing in
    this process leaves them as they are.

    Args:
        folder: the study's folder, open for writing.
        tasks: those that were measured; None: there are none.
    """
    if tasks is None or (TASK_COSTS in folder.facts and not tasks.overheads):
        return
    costs = {"requests": tasks.built.requests, "building_seconds": round(tasks.building_seconds, 4)}
    if tasks.overheads:
        median = round(statistics.median(tasks.overheads), 4)
        costs |= {"cells": len(tasks.overheads), "harness_seconds": median}
    folder.facts[TASK_COSTS] = costs
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
    reference: bool = True,
    unit: str = "cells",
    execution: Execution = HERE,
    tasks: StandardTasks | None = None,
) -> None:
    """Measure the cells that are not journalled yet, in order; write the table, also when
    interrupted.

    A cell that fails is recorded with its reason, and the others go on; a later call measures it
    again. What would make all cells fail stops the study with its error: see `Ledger.fail`.

    Args:
        folder: the study's folder, open for writing.
        points: the settings of all cells; or, if several cells are measured together, what the
            settings of each such group have in common.
        recipe: prepares workers in other processes; None: only `local` can measure, and its cells
            depend on each other, so that one that fails ends the study.
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
        reference: whether the first point is what the others are compared with, the model as it
            is, without which they are of no use.
        unit: what the points are called in progress reports.
        execution: by what they are measured.
        tasks: the standard tasks that are measured; the records say what they took.

    Raises:
        DeltaLensError: there is no such executor, a worker process was killed, or no cell can be
            measured.
    """
    ledger = Ledger(
        folder,
        points,
        watch.on_cell,
        watch.advance,
        point_of,
        requires,
        cells_of,
        independent=recipe is not None,
        reference=reference,
    )
    ledger.begin(is_done)
    running: dict[Future[tuple[Any, float]], Setting] = {}
    jobs, execute = _choose_executor(folder, recipe, execution, len(ledger.todo))
    watch.stage(unit, len(points))
    watch.advance(len(points) - len(ledger.todo))
    try:
        with execute(recipe, local, jobs, watch.within) as pool:  # type: ignore[arg-type]
            while ledger.todo or running:
                while len(running) < jobs and (setting := ledger.next(running.values())):
                    running[pool.start(setting)] = setting
                finished, _ = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
                pool.listen()
                # What was measured first: a failure may end the study.
                for future in sorted(finished, key=lambda future: bool(future.exception())):
                    setting, error = running.pop(future), future.exception()
                    if error is None:
                        ledger.journal(setting, *future.result())
                    else:
                        ledger.fail(setting, error)
        ledger.end()
    except BrokenExecutor as error:
        raise DeltaLensError(
            "a worker process was killed (out of memory?); finished cells are kept: run the same "
            "study again with fewer jobs to continue"
        ) from error
    finally:
        (write_table or (lambda: folder.write_table(points)))()
        keep_costs(folder, tasks)


def _choose_executor(
    folder: StudyFolder, recipe: Recipe[Any] | None, execution: Execution, left: int
) -> tuple[int, Executor]:
    """The number of jobs, and the executor: this process alone, with a note in the records, if the
    recipe cannot be sent to another one."""
    executor = execution.find()
    if recipe is None or not left or executor is sequential:
        return 1, sequential
    reason = execution.local_reason(recipe)
    if reason is not None:
        notes, note = folder.facts.setdefault("notes", []), f"measured in one process: {reason}"
        if note not in notes:
            notes.append(note)
            folder.write_manifest()
        return 1, sequential
    return min(execution.jobs, left), executor
