"""What measures the cells of a study: this process, several processes, or an executor of an
installed package."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

import torch

from deltalens.catalog.plugins import find, plugins
from deltalens.errors import DeltaLensError, describe_error
from deltalens.io.escaping import plain_lines
from deltalens.io.records import Setting
from deltalens.io.stopping import ignore_requests
from deltalens.scoring.texts import Progress

__all__ = [
    "Executor",
    "Recipe",
    "Report",
    "Worker",
    "WorkerPool",
    "find_executor",
    "local_reason",
    "processes",
    "sequential",
]

_REPORT_SECONDS = 0.5
"""At least this long between two reports of a worker process."""

Measured = TypeVar("Measured")
Measured_co = TypeVar("Measured_co", covariant=True)
Report = Callable[[int, int], None]
"""Called with (steps done, steps in all) of the running cell."""
Within = Callable[[float], None]
"""Called with the progress within the running cells: the sum of their completed fractions."""


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
    def one_device(self) -> bool:
        """Whether all workers use the same accelerator, even if there are several."""
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
            A future of what was measured and the seconds it took.
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


def find_executor(name: str | None, jobs: int) -> Executor:
    """Find an executor.

    Args:
        name: of the executor; None: `processes` if there are several jobs, else `sequential`.
        jobs: cells that are measured at the same time.

    Returns:
        The executor.

    Raises:
        DeltaLensError: there is no executor of this name, it cannot be loaded, or `jobs` is below
            1.
    """
    if jobs < 1:
        raise DeltaLensError(f"jobs {jobs}: must be at least 1")
    built_in: dict[str, Executor] = {"sequential": sequential, "processes": processes}
    name = name or ("processes" if jobs > 1 else "sequential")
    if name in built_in:
        return built_in[name]
    plugin = find("executor", name, built_in)
    if plugin is None:
        available = ", ".join([*built_in, *sorted(plugins("executor", built_in))])
        raise DeltaLensError(f"executor {name!r}: choose from {available}")
    executor: Executor = plugin.load()
    return executor


def local_reason(recipe: Recipe[Any]) -> str | None:
    """Explain why only this process can prepare workers, if that is so.

    Args:
        recipe: of the workers.

    Returns:
        The reason; None: any process can.
    """
    if recipe.local_reason is not None:
        return recipe.local_reason
    try:
        pickled = bytes(ForkingPickler.dumps(recipe))
    except Exception as error:  # The caller's objects can raise anything.
        return f"what is measured cannot be sent to another process ({describe_error(error)})"
    if b"__main__" in pickled and not hasattr(sys.modules["__main__"], "__file__"):
        return "what is measured is defined at a prompt, where no other process can import it"
    return None


class _LocalPool:
    """One worker, in this process."""

    def __init__(self, worker: Worker[Any], within: Within) -> None:
        self._worker, self._within = worker, within

    def start(self, setting: Setting) -> Future[tuple[Any, float]]:
        """Measure one point at once; errors are raised immediately (see `WorkerPool`)."""
        future: Future[tuple[Any, float]] = Future()
        begun = time.perf_counter()
        measured = self._worker.measure(
            setting, lambda done, total: self._within(done / max(1, total))
        )
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


class _ProcessPool:
    """Workers in other processes."""

    def __init__(self, pool: ProcessPoolExecutor, inbox: Any, within: Within) -> None:
        self._pool, self._inbox, self._within = pool, inbox, within
        self._fractions: dict[int, float] = {}
        self._futures: dict[int, Future[tuple[Any, float]]] = {}

    def start(self, setting: Setting) -> Future[tuple[Any, float]]:
        """See `WorkerPool`."""
        number = len(self._futures)
        future: Future[tuple[Any, float]] = self._pool.submit(_work, number, setting)
        self._futures[number] = future
        return future

    def listen(self) -> None:
        """See `WorkerPool`."""
        while not self._inbox.empty():
            number, fraction = self._inbox.get()
            self._fractions[number] = fraction
        running = (n for n, future in self._futures.items() if not future.done())
        self._within(sum(self._fractions.get(number, 0.0) for number in running))


@contextmanager
def processes(
    recipe: Recipe[Measured], local: Worker[Measured], jobs: int, within: Within
) -> Iterator[WorkerPool[Measured]]:
    """Measure in several processes, each with its own worker, and with its own accelerator if there
    are several. The processes also end if this one dies.

    Args:
        recipe, local, jobs, within: see `Executor`.

    Yields:
        A pool of the processes.
    """
    local.close()
    context = get_context("spawn")
    # Workers wait for this pipe to close, as it does when this process dies.
    worker_end, our_end = context.Pipe(duplex=False)
    inbox, numbers = context.SimpleQueue(), context.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    threads = torch.get_num_threads()
    if recipe.shares_threads:
        threads = max(1, threads // jobs)
    devices = [] if recipe.one_device else _devices()
    quiet = "transformers" in sys.modules
    pool = ProcessPoolExecutor(
        jobs, context, _begin, (recipe, worker_end, inbox, numbers, threads, devices, quiet)
    )
    try:
        yield _ProcessPool(pool, inbox, within)
    finally:
        our_end.close()
        pool.shutdown(wait=True, cancel_futures=True)
        worker_end.close()


def _devices() -> list[str]:
    """The accelerators that this process can see, as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(number) for number in range(count)])[:count]


_process_state: dict[str, Any] = {}
"""In a worker process: its recipe, its outbox, and its worker once it is prepared."""


class _Silent:
    """A `Progress` that reports to nobody."""

    def stage(self, name: str, total: int | None) -> None:
        """See `Progress`."""

    def advance(self, steps: int) -> None:
        """See `Progress`."""


def _begin(
    recipe: Recipe[Any],
    parent_alive: Connection,
    outbox: Any,
    numbers: Any,
    threads: int,
    devices: list[str],
    quiet: bool,
) -> None:
    """Initialize a worker process. It ignores Ctrl-C: the parent handles that, and the worker ends
    with its parent."""
    ignore_requests()
    threading.Thread(target=_exit_with, args=(parent_alive,), daemon=True).start()
    number = numbers.get()
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    torch.set_num_threads(threads)
    warnings.formatwarning = _one_line
    if quiet:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    _process_state.update(recipe=recipe, outbox=outbox)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """Format a warning as the commands do."""
    return f"{category.__name__}: {plain_lines(message)}\n"


def _exit_with(parent_alive: Connection) -> None:
    """End this process as soon as its parent has ended."""
    parent_alive.poll(None)
    os._exit(1)


def _work(number: int, setting: Setting) -> tuple[Any, float]:
    """Measure a point in a worker process; what was measured, and the seconds it took."""
    if "worker" not in _process_state:
        _process_state["worker"] = _process_state["recipe"].prepare(_Silent())
    begun = reported = time.perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal reported
        now = time.perf_counter()
        if now - reported >= _REPORT_SECONDS:
            reported = now
            _process_state["outbox"].put((number, done / max(1, total)))

    return _process_state["worker"].measure(setting, report), time.perf_counter() - begun
