"""The actors of a Ray cluster, and the cells that they take."""

from __future__ import annotations

import functools
import os
import queue
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from deltalens.errors import DeltaLensError, describe_error
from deltalens.io.records import Setting
from deltalens.studies.executors.protocol import Within
from deltalens.studies.executors.ray_worker import RayWorker

__all__ = ["RayPool"]

_DEATHS = 3
"""So many workers may die of one cell, or while they load the model."""


@dataclass(eq=False)
class _Task:
    """A cell on its way to a result."""

    number: int
    setting: Setting
    future: Future[tuple[Any, float]] = field(default_factory=Future)
    deaths: int = 0
    """How many workers died while they measured it."""


@dataclass(eq=False)
class _Seat:
    """A reserved place, and the actor in it."""

    bundle: int
    actor: Any = None
    ready: bool = False
    task: _Task | None = None
    latest: Any = None
    """Reference to the result of the last call."""
    deaths: int = 0
    """How many actors in a row died while they loaded the model."""
    since: float = 0.0
    """When the actor was started, on the monotonic clock."""


class RayPool:
    """Actors that take cells (see `WorkerPool`).

    Ray calls back on threads of its own. What a cell's end changes is settled there, so that the
    next cell can start at once; everything else is put into `_events`, for `listen`.
    """

    def __init__(
        self,
        pickled: bytes,
        expected: Mapping[str, str],
        group: Any,
        needs: Mapping[str, float],
        within: Within,
        patience: float,
    ) -> None:
        import ray
        from ray.util.queue import Queue

        self._pickled, self._expected = ray.put(pickled), expected
        self._group, self._needs, self._within, self._patience = group, needs, within, patience
        self._inbox = Queue(actor_options={"num_cpus": 0})
        self._actor = ray.remote(RayWorker)
        self._seats: list[_Seat] = []
        self._waiting: list[_Task] = []
        self._tasks: list[_Task] = []
        self._fractions: dict[int, float] = {}
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def open(self, workers: int) -> None:
        """Start the actors; they check the study's files, and load the model.

        Args:
            workers: how many.
        """
        self._seats = [_Seat(bundle) for bundle in range(workers)]
        for seat in self._seats:
            self._fill(seat)

    def start(self, setting: Setting) -> Future[tuple[Any, float]]:
        """See `WorkerPool`."""
        task = _Task(len(self._tasks), setting)
        self._tasks.append(task)
        self._waiting.append(task)
        self._hand_out()
        return task.future

    def listen(self) -> None:
        """See `WorkerPool`.

        Raises:
            DeltaLensError: no worker can be prepared, or the last one is lost.
        """
        while not self._events.empty():
            self._events.get()()
        self._give_up_places()
        self._hand_out()
        with suppress(Exception):  # The inbox is lost with its node: then there is no progress.
            self._fractions.update(self._inbox.get_nowait_batch(self._inbox.size()))
        running = (task.number for task in self._tasks if not task.future.done())
        self._within(sum(self._fractions.get(number, 0.0) for number in running))

    def close(self) -> None:
        """End all actors, and wait until they write to no file any more."""
        import ray

        last = [seat.latest for seat in self._seats if seat.latest is not None]
        for seat in self._seats:
            _end(seat)
        with suppress(Exception):
            ray.wait(last, num_returns=max(1, len(last)), timeout=10)
        with suppress(Exception):
            self._inbox.shutdown(force=True)

    def _fill(self, seat: _Seat) -> None:
        """Start an actor in its place."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        _end(seat)
        place = PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=seat.bundle
        )
        seat.ready, seat.since = False, time.monotonic()
        seat.actor = self._actor.options(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs.get("GPU", 0),
            scheduling_strategy=place,
        ).remote(self._pickled, torch.get_num_threads(), "transformers" in sys.modules, self._inbox)
        seat.latest = seat.actor.prepare.remote(self._expected, os.getcwd())
        seat.latest.future().add_done_callback(
            lambda done: self._events.put(functools.partial(self._prepared, seat, done))
        )

    def _prepared(self, seat: _Seat, done: Future[Any]) -> None:
        """An actor is ready, or is not going to be."""
        if (lost := done.exception()) is not None:
            seat.deaths += 1
            if seat.deaths == _DEATHS:
                raise DeltaLensError(
                    f"a worker of Ray died {_DEATHS} times while it was prepared (out of memory?): "
                    f"{describe_error(lost)}"
                ) from lost
            self._fill(seat)
            return
        if (refused := done.result()) is not None:
            raise refused
        seat.ready, seat.deaths = True, 0

    def _hand_out(self) -> None:
        """Give waiting cells to actors that have none."""
        for seat in self._seats:
            if self._waiting and seat.ready and seat.task is None:
                task = seat.task = self._waiting.pop(0)
                seat.latest = seat.actor.measure.remote(task.number, task.setting)
                seat.latest.future().add_done_callback(
                    functools.partial(self._measured, seat, task)
                )

    def _measured(self, seat: _Seat, task: _Task, done: Future[Any]) -> None:
        """A cell has ended, or its actor has."""
        from ray.exceptions import RayTaskError

        error = done.exception()
        if error is not None and not isinstance(error, RayTaskError):
            self._events.put(functools.partial(self._lost, seat, task, error))
            return
        seat.task = None  # First: whoever waits for the future may start the next cell.
        outcome = error if error is not None else done.result()
        if isinstance(outcome, BaseException):
            task.future.set_exception(outcome)
        else:
            task.future.set_result(outcome)

    def _lost(self, seat: _Seat, task: _Task, error: BaseException) -> None:
        """An actor was lost with its cell: replace it, and measure the cell again."""
        seat.task = None
        task.deaths += 1
        if task.deaths == _DEATHS:
            task.future.set_exception(
                DeltaLensError(
                    f"{_DEATHS} workers died while they measured it (out of memory?): "
                    f"{describe_error(error)}"
                )
            )
        else:
            self._waiting.insert(0, task)
        self._fill(seat)

    def _give_up_places(self) -> None:
        """Go on with fewer workers if a place was lost with its node, and there is no other."""
        now = time.monotonic()
        late = [
            seat for seat in self._seats if not seat.ready and now - seat.since > self._patience
        ]
        if late and not self._group.wait(0.1):
            for seat in late:
                _end(seat)
                self._seats.remove(seat)
            if not self._seats:
                raise DeltaLensError(
                    "all workers of Ray were lost, and no free resources were found for others "
                    f"within {self._patience:g} s; finished cells are kept: run the same study "
                    "again to continue"
                )


def _end(seat: _Seat) -> None:
    """Kill the actor in a place, if there is one."""
    import ray

    if seat.actor is not None:
        with suppress(Exception):
            ray.kill(seat.actor)
        seat.actor = None
