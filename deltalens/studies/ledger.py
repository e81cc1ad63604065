"""The cells of a study in one call: which are left, which may start, and what became of the
others."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, describe_error, is_library_error
from deltalens.io.records import Cell, Setting, StudyFolder
from deltalens.scoring.suite import Metrics
from deltalens.studies.executors import NotPrepared

__all__ = ["CellsOf", "Ledger"]

CellsOf = Callable[[Setting, Any], Sequence[tuple[Setting, Metrics]]]
"""(point, what its worker measured) -> the cells to be journalled for it, together."""


class Ledger:
    """What is left to measure, and what was measured or failed.

    Args:
        folder: the study's folder, open for writing.
        points, reference: as `run_cells` takes them.
        on_cell: told of every cell that is journalled.
        advance: told how many points are done.
        point_of, requires, cells_of: as `run_cells` takes them.
        independent: whether a cell that fails says nothing about the others; if not, it ends the
            study.
    """

    def __init__(
        self,
        folder: StudyFolder,
        points: Sequence[Setting],
        on_cell: Callable[[Path, Cell], None],
        advance: Callable[[int], None],
        point_of: Callable[[Setting], str | None],
        requires: Callable[[Setting], str | None],
        cells_of: CellsOf,
        independent: bool,
        reference: bool = True,
    ) -> None:
        self._folder, self._on_cell, self._advance = folder, on_cell, advance
        self._point_of, self._requires, self._cells_of = point_of, requires, cells_of
        self._independent = independent
        self._reference = self._model(points[0]) if points and reference else None
        self._measured = {point_of(cell.setting): cell.metrics for cell in folder.cells}
        self._beyond = any(self._model(cell.setting) != self._reference for cell in folder.cells)
        """Whether the study has a cell beside its reference, if it has one."""
        self._failed: dict[str, str] = {}
        """Point -> why it failed in this call."""
        self._first_error: BaseException | None = None
        self.todo: list[Setting] = [*points]
        """The points that are left, in order."""

    def begin(self, is_done: Callable[[Setting], bool] | None) -> None:
        """Leave out what is done.

        Args:
            is_done: whether nothing is left to measure at a point; None: whether it is journalled.
        """
        done = {repr(cell.setting) for cell in self._folder.cells}
        self.todo = [
            setting
            for setting in self.todo
            if not (is_done(setting) if is_done else repr(setting) in done)
        ]

    def next(self, running: Collection[Setting]) -> Setting | None:
        """The next point for a worker: the first that nobody is measuring under another setting,
        and whose requirement is met. Points before it that need no worker are settled.

        Args:
            running: the points that are being measured.

        Returns:
            The point, which is then no longer left; None: there is none by now.
        """
        while (setting := self._startable(running)) is not None:
            self.todo.remove(setting)
            point, needed = self._point_of(setting), self._requires(setting)
            if point is not None and point in self._measured:
                self._record(setting, [(setting, self._measured[point])], 0.0)
            elif point is not None and point in self._failed:
                self._give_up(setting, self._failed[point])
            elif needed is not None and needed in self._failed:
                self._give_up(
                    setting, f"it requires {needed}, which failed: {self._failed[needed]}"
                )
            else:
                return setting
        return None

    def _startable(self, running: Collection[Setting]) -> Setting | None:
        busy = {self._point_of(setting) for setting in running} - {None}
        settled = {None, *self._measured, *self._failed}
        for setting in self.todo:
            if self._point_of(setting) not in busy and self._requires(setting) in settled:
                return setting
        return None if running or not self.todo else self.todo[0]

    def journal(self, setting: Setting, measured: Any, seconds: float) -> None:
        """Record what was measured at a point.

        Args:
            setting: the point.
            measured: by its worker.
            seconds: that it took.
        """
        self._record(setting, self._cells_of(setting, measured), seconds)

    def _record(
        self, setting: Setting, new: Sequence[tuple[Setting, Metrics]], seconds: float
    ) -> None:
        self._measured[self._point_of(setting)] = new[0][1] if new else {}
        self._beyond = self._beyond or self._model(setting) != self._reference
        cells = [Cell(cell_setting, metrics, seconds) for cell_setting, metrics in new]
        self._folder.forgive(setting)
        # In one write: if it is torn, the whole point is measured again.
        self._folder.extend(cells)
        for cell in cells:
            self._on_cell(self._folder.path, cell)
        self._advance(1)

    def fail(self, setting: Setting, error: BaseException) -> None:
        """Record that a point failed; or end the study.

        The study ends if it has nothing to compare with, or no cell can be expected to succeed: the
        reference fails, a worker cannot be prepared, a process pool is broken, the cells depend on
        each other; or two points fail for the same reason before any but the reference has been
        measured. Where there is no reference, the points are different models, and one that fails
        says nothing about the others.

        Args:
            setting: the point.
            error: that its worker raised.

        Raises:
            BaseException: the error, if the study ends; `NotPrepared` is replaced by its reason.
        """
        if isinstance(error, NotPrepared):
            raise error.error
        ends = not self._independent or self._model(setting) == self._reference
        if ends or isinstance(error, BrokenExecutor) or not is_library_error(error):
            raise error
        reason = str(error) if isinstance(error, DeltaLensError) else describe_error(error)
        compared = self._reference is not None and not self._beyond
        if compared and reason in self._failed.values():
            raise error
        _release(error)
        self._first_error = self._first_error or error
        self._give_up(setting, reason)

    def _give_up(self, setting: Setting, reason: str) -> None:
        self._failed.setdefault(self._model(setting), reason)
        self._folder.fail(setting, reason)
        self._advance(1)

    def end(self) -> None:
        """Refuse a study of which nothing but the reference could be measured.

        Raises:
            BaseException: the first error.
        """
        if self._first_error is not None and not self._beyond:
            raise self._first_error

    def _model(self, setting: Setting) -> str:
        """The name of a point, even if it shares its model with no other."""
        return self._point_of(setting) or repr(setting)


def _release(error: BaseException | None) -> None:
    """Let go of what the frames that raised an error refer to: a model, in the end."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
