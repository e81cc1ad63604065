"""Where the cells of a study are measured: in this process, in several, or wherever an installed
package takes them."""

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
    "Hands",
    "Recipe",
    "Tell",
    "Worker",
    "find_executor",
    "processes",
    "sequential",
    "why_it_stays",
]

_SECONDS_BETWEEN_WORDS = 0.5

Found = TypeVar("Found")
Found_co = TypeVar("Found_co", covariant=True)
Tell = Callable[[int, int], None]
"""So many steps of all are done."""
Within = Callable[[float], None]
"""How far the running cells are, all together, in cells."""


class Worker(Protocol[Found_co]):
    """Measures one cell after the other; nothing of one depends on those before."""

    def measure(self, setting: Setting, tell: Tell) -> Found_co:
        """What is found at one point of the study."""
        ...

    def close(self) -> None:
        """Put right what was changed, and let go of what is held; nothing if that was done."""
        ...


class Recipe(Protocol[Found_co]):
    """How a worker is prepared, in any process: paths, what is measured, what is edited."""

    @property
    def stays(self) -> str | None:
        """Why no other process can follow it, if so."""
        ...

    @property
    def shares_threads(self) -> bool:
        """Workers beside each other have a share of the threads each. Else each has all of them:
        sums of floating-point numbers depend on how many there are, and tables must not."""
        ...

    @property
    def one_device(self) -> bool:
        """Workers stay on the accelerator that was named, even if there are several."""
        ...

    def prepare(self, watch: Progress) -> Worker[Found_co]:
        """A worker of its own, ready to measure."""
        ...


class Hands(Protocol[Found]):
    """Workers, for the duration of a study."""

    def start(self, setting: Setting) -> Future[tuple[Found, float]]:
        """What is found at a point, with the seconds it took, once it is there."""
        ...

    def listen(self) -> None:
        """Pass on how far the running cells are."""
        ...


class Executor(Protocol):
    """Finds hands for a study. A package adds one by an entry point of the group
    `deltalens.executors`: its name is the executor's, its object an `Executor`."""

    def __call__(
        self, recipe: Recipe[Found], here: Worker[Found], jobs: int, within: Within
    ) -> AbstractContextManager[Hands[Found]]:
        """Hands for the duration of the block; at its end, however it ends, they are gone.

        Args:
            recipe: prepares a worker; it and the settings are pickled where they have to travel.
            here: a worker that is prepared in this process. An executor that does not use it
                closes it, before it prepares any other.
            jobs: cells that are measured at once.
            within: told how far the running cells are.
        """
        ...


def find_executor(name: str | None, jobs: int) -> Executor:
    """An executor by its name; if none is given, several processes where there are several jobs.

    Raises:
        DeltaLensError: no executor of this name, it cannot be loaded, or `jobs` is no positive
            number.
    """
    if jobs < 1:
        raise DeltaLensError(f"jobs {jobs}: at least 1")
    known: dict[str, Executor] = {"sequential": sequential, "processes": processes}
    name = name or ("processes" if jobs > 1 else "sequential")
    if name in known:
        return known[name]
    found = find("executor", name, known)
    if found is None:
        there = ", ".join([*known, *sorted(plugins("executor", known))])
        raise DeltaLensError(f"executor {name!r}: there are {there}")
    made: Executor = found.load()
    return made


def why_it_stays(recipe: Recipe[Any]) -> str | None:
    """Why no other process can prepare a worker, if so: what is to be measured cannot be taken
    there."""
    if recipe.stays is not None:
        return recipe.stays
    try:
        taken = bytes(ForkingPickler.dumps(recipe))
    except Exception as error:  # Of whatever the caller hands in: any kind.
        return f"what is measured cannot be taken to another process ({describe_error(error)})"
    if b"__main__" in taken and not hasattr(sys.modules["__main__"], "__file__"):
        return "what is measured is defined at a prompt, where no other process finds it"
    return None


class _Here:
    """Measures in this process, one cell after the other."""

    def __init__(self, worker: Worker[Any], within: Within) -> None:
        self._worker, self._within = worker, within

    def start(self, setting: Setting) -> Future[tuple[Any, float]]:
        """See `Hands`; what it raises is raised here."""
        future: Future[tuple[Any, float]] = Future()
        begun = time.perf_counter()
        found = self._worker.measure(
            setting, lambda done, total: self._within(done / max(1, total))
        )
        future.set_result((found, time.perf_counter() - begun))
        return future

    def listen(self) -> None:
        """Whatever was started is done."""
        self._within(0.0)


@contextmanager
def sequential(
    recipe: Recipe[Found] | None, here: Worker[Found], jobs: int, within: Within
) -> Iterator[Hands[Found]]:
    """One cell after the other, by the worker that is prepared here (see `Executor`)."""
    yield _Here(here, within)


class _Processes:
    """Measures in other processes."""

    def __init__(self, pool: ProcessPoolExecutor, inbox: Any, within: Within) -> None:
        self._pool, self._inbox, self._within = pool, inbox, within
        self._shares: dict[int, float] = {}
        self._futures: dict[int, Future[tuple[Any, float]]] = {}

    def start(self, setting: Setting) -> Future[tuple[Any, float]]:
        """See `Hands`."""
        number = len(self._futures)
        future: Future[tuple[Any, float]] = self._pool.submit(_work, number, setting)
        self._futures[number] = future
        return future

    def listen(self) -> None:
        """See `Hands`."""
        while not self._inbox.empty():
            number, share = self._inbox.get()
            self._shares[number] = share
        running = (n for n, future in self._futures.items() if not future.done())
        self._within(sum(self._shares.get(number, 0.0) for number in running))


@contextmanager
def processes(
    recipe: Recipe[Found], here: Worker[Found], jobs: int, within: Within
) -> Iterator[Hands[Found]]:
    """So many processes, each with a worker of its own, and with an accelerator of its own where
    there are several (see `Executor`). They end as well when this process dies."""
    here.close()
    context = get_context("spawn")
    alive_here, alive_there = context.Pipe(duplex=False)
    inbox, numbers = context.SimpleQueue(), context.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    threads = torch.get_num_threads()
    if recipe.shares_threads:
        threads = max(1, threads // jobs)
    devices = [] if recipe.one_device else _devices()
    quiet = "transformers" in sys.modules
    pool = ProcessPoolExecutor(
        jobs, context, _begin, (recipe, alive_here, inbox, numbers, threads, devices, quiet)
    )
    try:
        yield _Processes(pool, inbox, within)
    finally:
        alive_there.close()
        pool.shutdown(wait=True, cancel_futures=True)
        alive_here.close()


def _devices() -> list[str]:
    """The accelerators that this process may see, as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(number) for number in range(count)])[:count]


_here: dict[str, Any] = {}
"""In a worker's process: its recipe, the worker once it is prepared, and its outbox."""


class _Silent:
    """A worker's progress in preparing: nobody is told."""

    def stage(self, name: str, total: int | None) -> None:
        """See `Progress`."""

    def advance(self, steps: int) -> None:
        """See `Progress`."""


def _begin(
    recipe: Recipe[Any],
    alive: Connection,
    outbox: Any,
    numbers: Any,
    threads: int,
    devices: list[str],
    quiet: bool,
) -> None:
    """A worker begins: Ctrl-C is for the process that asked, whose end is this one's."""
    ignore_requests()
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    number = numbers.get()
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    torch.set_num_threads(threads)
    warnings.formatwarning = _one_line
    if quiet:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    _here.update(recipe=recipe, outbox=outbox)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """A warning as the commands show it."""
    return f"{category.__name__}: {plain_lines(message)}\n"


def _end_with(alive: Connection) -> None:
    alive.poll(None)
    os._exit(1)


def _work(number: int, setting: Setting) -> tuple[Any, float]:
    if "worker" not in _here:
        _here["worker"] = _here["recipe"].prepare(_Silent())
    begun = said = time.perf_counter()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.perf_counter()
        if now - said >= _SECONDS_BETWEEN_WORDS:
            said = now
            _here["outbox"].put((number, done / max(1, total)))

    return _here["worker"].measure(setting, tell), time.perf_counter() - begun
