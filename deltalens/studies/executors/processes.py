"""Measuring in several processes on this machine."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from deltalens.io.records import Setting
from deltalens.io.stopping import ignore_requests
from deltalens.studies.executors.protocol import Recipe, Within, Worker, WorkerPool
from deltalens.studies.executors.remote import RemoteWorker

__all__ = ["processes"]

Measured = TypeVar("Measured")


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
    recipe: Recipe[Measured],
    local: Worker[Measured],
    jobs: int,
    within: Within,
    devices: Sequence[str] = (),
) -> Iterator[WorkerPool[Measured]]:
    """Measure in several processes, each with its own worker, and with its own accelerator if there
    are several. The processes also end if this one dies.

    Args:
        recipe, local, jobs, within: see `Executor`.
        devices: one for each process (`cuda:0`, ...); (): all accelerators in turn.

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
    one_for_all = recipe.device.index is not None
    accelerators = [] if one_for_all else _accelerators(devices)
    quiet = "transformers" in sys.modules
    pool = ProcessPoolExecutor(
        jobs, context, _begin, (recipe, worker_end, inbox, numbers, threads, accelerators, quiet)
    )
    try:
        yield _ProcessPool(pool, inbox, within)
    except BaseException:
        our_end.close()  # Nobody waits for the cells that are being measured.
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        our_end.close()
        worker_end.close()


def _accelerators(devices: Sequence[str]) -> list[str]:
    """The accelerators to share among the processes, as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = (named or [str(number) for number in range(count)])[:count]
    chosen = [torch.device(name) for name in devices]
    if not chosen:
        return visible
    return [visible[device.index or 0] for device in chosen if device.type == "cuda"]


_process_state: dict[str, Any] = {}
"""In a worker process: its worker, and its outbox."""


def _begin(
    recipe: Recipe[Any],
    parent_alive: Connection,
    outbox: Any,
    numbers: Any,
    threads: int,
    accelerators: Sequence[str],
    quiet: bool,
) -> None:
    """Initialize a worker process. It ignores Ctrl-C: the parent handles that, and the worker ends
    with its parent."""
    ignore_requests()
    threading.Thread(target=_exit_with, args=(parent_alive,), daemon=True).start()
    number = numbers.get()
    if accelerators:
        os.environ["CUDA_VISIBLE_DEVICES"] = accelerators[number % len(accelerators)]
    _process_state.update(worker=RemoteWorker(recipe, threads, quiet), outbox=outbox)


def _exit_with(parent_alive: Connection) -> None:
    """End this process as soon as its parent has ended."""
    parent_alive.poll(None)
    os._exit(1)


def _work(number: int, setting: Setting) -> tuple[Any, float]:
    """Measure a point in a worker process; what was measured, and the seconds it took."""
    measured: tuple[Any, float] = _process_state["worker"].measure(
        setting, lambda fraction: _process_state["outbox"].put((number, fraction))
    )
    return measured
