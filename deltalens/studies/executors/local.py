"""Measuring in this process, one cell after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from deltalens.errors import is_library_error
from deltalens.io.records import Setting
from deltalens.studies.executors.protocol import Recipe, Within, Worker, WorkerPool

__all__ = ["sequential"]

Measured = TypeVar("Measured")


class _LocalPool:
    """One worker, in this process."""

    def __init__(self, worker: Worker[Any], within: Within) -> None:
        self._worker, self._within = worker, within

    def start(self, setting: Setting) -> Future[tuple[Any, float]]:
        """Measure one point at once (see `WorkerPool`)."""
        future: Future[tuple[Any, float]] = Future()
        begun = time.perf_counter()
        try:
            measured = self._worker.measure(
                setting, lambda done, total: self._within(done / max(1, total))
            )
        except BaseException as error:
            if not is_library_error(error):
                raise
            future.set_exception(error)
        else:
            future.set_result((measured, time.perf_counter() - begun))
        return future

    def listen(self) -> None:
        """Nothing is running: `start` returns when its cell is done (see `WorkerPool`)."""
        self._within(0.0)


@contextmanager
def sequential(
    recipe: Recipe[Measured] | None, local: Worker[Measured], jobs: int, within: Within
) -> Iterator[WorkerPool[Measured]]:
    """Measure one cell after the other, in this process.

    Args:
        recipe, jobs: not used.
        local, within: see `Executor`.

    Yields:
        A pool of the local worker.
    """
    yield _LocalPool(local, within)
