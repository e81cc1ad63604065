"""The engine of every study: cells in order, a journal, resume, and the caller's view of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deltalens.catalog.metrics import Better
from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.fingerprint import take_fingerprints
from deltalens.io.records import Cell, Setting, StudyFolder
from deltalens.scoring.suite import Metrics
from deltalens.studies.executors import Here, Processes, Tell, processes

__all__ = ["Measure", "StudyWatch", "keep_better", "read_weights", "run_cells"]

Measure = Callable[[Setting, Tell], Metrics]
"""Makes and evaluates one cell, and tells how far it is."""
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


def keep_better(folder: StudyFolder, better: Mapping[str, Better]) -> None:
    """Write down which way the caller's metrics are better. It decides no number, so it is no part
    of what was asked: a later call may say it for the first time, or say otherwise."""
    if better:
        folder.facts["better"] = dict(better)
        folder.write_manifest()


def run_cells(
    folder: StudyFolder,
    cells: Sequence[Setting],
    measure: Measure,
    watch: StudyWatch,
    same: Callable[[Setting], str | None] = lambda setting: None,
    after: Callable[[Setting], str | None] = lambda setting: None,
    jobs: int = 1,
) -> None:
    """Measure what is not journalled yet, in order; write the table, also when interrupted.

    Args:
        folder: open for writing.
        cells: the settings of all cells.
        measure: makes and evaluates one cell; pickled, if there are several jobs.
        watch: told of every cell.
        same: a name for cells that are one and the same point (rate 0 of every strategy is the
            fine-tune): it is measured once, and journalled for each. None: a point of its own.
        after: the point that a cell builds on; it waits until that one is measured.
        jobs: cells that are measured at once, each in a process of its own; with one, here.

    Raises:
        DeltaLensError: `jobs` is no positive number, or a process was killed.
    """
    if jobs < 1:
        raise DeltaLensError(f"jobs {jobs}: at least 1")
    done = {repr(cell.setting) for cell in folder.cells}
    known = {same(cell.setting): cell.metrics for cell in folder.cells}
    todo = [setting for setting in cells if repr(setting) not in done]
    running: dict[Future[tuple[Metrics, float]], Setting] = {}

    def journal(setting: Setting, metrics: Metrics, seconds: float) -> None:
        known[same(setting)] = metrics
        cell = Cell(setting, metrics, seconds)
        folder.append(cell)
        watch.on_cell(folder.path, cell)
        watch.advance(1)

    def next_one() -> Setting | None:
        """The first cell whose point nobody is measuring, and whose ground is laid."""
        busy = {same(setting) for setting in running.values()} - {None}
        for setting in todo:
            if same(setting) not in busy and after(setting) in (None, *known):
                return setting
        return None if running else todo[0]

    watch.stage("cells", len(cells))
    watch.advance(len(cells) - len(todo))
    try:
        with _hands(measure, min(jobs, max(1, len(todo))), watch) as hands:
            while todo or running:
                while todo and len(running) < jobs and (setting := next_one()) is not None:
                    todo.remove(setting)
                    point = same(setting)
                    if point is not None and point in known:
                        journal(setting, known[point], 0.0)
                    else:
                        running[hands.start(setting)] = setting
                finished, _ = wait(running, _SECONDS, FIRST_COMPLETED)
                hands.listen()
                for future in finished:
                    journal(running.pop(future), *future.result())
    except BrokenProcessPool as error:
        raise DeltaLensError(
            "a process that measured a cell was killed (out of memory?): finished cells are kept, "
            "and the same study with fewer jobs goes on"
        ) from error
    finally:
        folder.write_table(cells)


@contextmanager
def _hands(
    measure: Measure, jobs: int, watch: StudyWatch
) -> Iterator[Here[Setting, Metrics] | Processes[Setting, Metrics]]:
    if jobs == 1:
        yield Here(measure, watch.within)
        return
    with processes(measure, jobs, watch.within) as there:
        yield there
