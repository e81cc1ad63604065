"""What an executor is: the protocols of workers, of recipes that prepare them, and of executors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from deltalens.io.records import Setting
from deltalens.scoring.texts import Progress, Report

__all__ = [
    "Executor",
    "NotPrepared",
    "Recipe",
    "Report",
    "Within",
    "Worker",
    "WorkerPool",
]

Measured = TypeVar("Measured")
Measured_co = TypeVar("Measured_co", covariant=True)
Within = Callable[[float], None]
"""Called with the progress within the running cells: the sum of their completed fractions."""


class NotPrepared(Exception):
    """A worker in another process could not be prepared, so that no cell can be measured there.

    Args:
        error: why.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Worker(Protocol[Measured_co]):
    """Measures one cell after the other; no result depends on the cells before."""

    def measure(self, setting: Setting, report: Report) -> Measured_co:
        """Measure one point of the study.

        Args:
            setting: the point.
            report: told of the progress.

        Returns:
            What was measured; a study's `cells_of` makes cells of it.
        """
        ...

    def close(self) -> None:
        """Undo all changes to the model and release it; later calls do nothing."""
        ...


class Recipe(Protocol[Measured_co]):
    """Prepares workers, in any process; a picklable description of what is measured and edited."""

    @property
    def local_reason(self) -> str | None:
        """Why only this process can prepare a worker; None: any process can."""
        ...

    @property
    def shares_threads(self) -> bool:
        """Whether parallel workers divide the threads among them. If not, each uses all of them:
        floating-point sums depend on the number of threads, and tables must not depend on the
        number of jobs."""
        ...

    @property
    def device(self) -> torch.device:
        """Where each worker loads its models. Without an index, workers may be given different
        accelerators."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """The files and study folders that a worker reads or writes."""
        ...

    def prepare(self, watch: Progress) -> Worker[Measured_co]:
        """Prepare a worker.

        Args:
            watch: told of stages and progress.

        Returns:
            The worker, ready to measure.
        """
        ...


class WorkerPool(Protocol[Measured]):
    """The workers of a running study."""

    def start(self, setting: Setting) -> Future[tuple[Measured, float]]:
        """Start to measure one point.

        Args:
            setting: the point.

        Returns:
            A future of what was measured and the seconds it took; or of the error that the cell
            failed with, or of `NotPrepared`.
        """
        ...

    def listen(self) -> None:
        """Pass on the progress of the running cells; called about twice a second."""
        ...


class Executor(Protocol):
    """Provides workers for a study. A package adds an executor by an entry point of the group
    `deltalens.executors`; its name is the executor's name, its object an `Executor`."""

    def __call__(
        self, recipe: Recipe[Measured], local: Worker[Measured], jobs: int, within: Within
    ) -> AbstractContextManager[WorkerPool[Measured]]:
        """Provide workers for the duration of a block. They are stopped at its end, also after an
        error.

        Args:
            recipe: prepares a worker; it and the settings are pickled if they have to be sent.
            local: a worker that is ready in this process. An executor that does not use it closes
                it before it prepares any other.
            jobs: cells that are measured at the same time.
            within: told of the progress within the running cells.

        Returns:
            A context manager; its value starts cells.
        """
        ...
