"""Cells in several processes at once: each has its share of the threads, and a device of its own
where there are several."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import torch

from deltalens.io.escaping import plain_lines
from deltalens.io.stopping import ignore_requests

__all__ = ["Here", "Processes", "processes"]

_SECONDS_BETWEEN_WORDS = 0.5

A = TypeVar("A")
B = TypeVar("B")
Tell = Callable[[int, int], None]
"""So many steps of all are done."""


class Here(Generic[A, B]):
    """Works in this process, one thing after the other."""

    def __init__(self, function: Callable[[A, Tell], B], within: Callable[[float], None]) -> None:
        self._function, self._within = function, within

    def start(self, item: A) -> Future[tuple[B, float]]:
        """The result of an item with the seconds it took; what it raises is raised here."""
        future: Future[tuple[B, float]] = Future()
        begun = time.perf_counter()
        found = self._function(item, lambda done, total: self._within(done / max(1, total)))
        future.set_result((found, time.perf_counter() - begun))
        return future

    def listen(self) -> None:
        """Whatever was started is done."""
        self._within(0.0)


class Processes(Generic[A, B]):
    """Works in other processes."""

    def __init__(
        self, pool: ProcessPoolExecutor, inbox: Any, within: Callable[[float], None]
    ) -> None:
        self._pool, self._inbox, self._within = pool, inbox, within
        self._shares: dict[int, float] = {}
        self._futures: dict[int, Future[tuple[B, float]]] = {}

    def start(self, item: A) -> Future[tuple[B, float]]:
        """The result of an item with the seconds it took, once it is there."""
        number = len(self._futures)
        future: Future[tuple[B, float]] = self._pool.submit(_work, number, item)
        self._futures[number] = future
        return future

    def listen(self) -> None:
        """Pass on how far the running items are, all together, in items."""
        while not self._inbox.empty():
            number, share = self._inbox.get()
            self._shares[number] = share
        running = (n for n, future in self._futures.items() if not future.done())
        self._within(sum(self._shares.get(number, 0.0) for number in running))


@contextmanager
def processes(
    function: Callable[[A, Tell], B], jobs: int, within: Callable[[float], None]
) -> Iterator[Processes[A, B]]:
    """So many processes for the duration of the block; at its end, however it ends, they are gone.

    They end as well when this process dies.

    Args:
        function: of an item and of what it tells its steps; it and the items are pickled.
        jobs: how many.
        within: told how far the running items are.
    """
    context = get_context("spawn")
    alive_here, alive_there = context.Pipe(duplex=False)
    inbox, numbers = context.SimpleQueue(), context.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    threads = max(1, torch.get_num_threads() // jobs)
    devices = _devices()
    quiet = "transformers" in sys.modules
    pool = ProcessPoolExecutor(
        jobs, context, _begin, (function, alive_here, inbox, numbers, threads, devices, quiet)
    )
    try:
        yield Processes(pool, inbox, within)
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
"""In a worker: its function and its outbox."""


def _begin(
    function: Callable[..., Any],
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
    _here.update(function=function, outbox=outbox)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """A warning as the commands show it."""
    return f"{category.__name__}: {plain_lines(message)}\n"


def _end_with(alive: Connection) -> None:
    alive.poll(None)
    os._exit(1)


def _work(number: int, item: Any) -> tuple[Any, float]:
    begun = said = time.perf_counter()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.perf_counter()
        if now - said >= _SECONDS_BETWEEN_WORDS:
            said = now
            _here["outbox"].put((number, done / max(1, total)))

    return _here["function"](item, tell), time.perf_counter() - begun
