"""Run a function over parts of the data, on all cores.

torch splits every operation over its threads and joins them again. For the short operations of a
pass that stays in cache, the joins cost more than the work, and on a busy machine far more. A pass
therefore gives whole parts to worker threads, and each operation stays on its thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TypeVar

import torch

__all__ = ["Mapper", "map_balanced", "one_thread", "serial_map", "workers"]

_TASK_ENTRIES = 1 << 19
"""Entries that are worth a task of their own."""
_TASKS_AHEAD = 4
"""Tasks per thread that are started before the first results are taken. Results may be large, so no
more than these are held at a time."""

A = TypeVar("A")
B = TypeVar("B")


class Mapper(Protocol):
    """Calls a function on every item; results come in the order of the items."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]:
        """Like the builtin `map`.

        Args:
            function: called with each item.
            items: the items.

        Returns:
            An iterable over the results, in order.
        """
        ...


def serial_map(function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]:
    """Call a function on one item after the other, on the calling thread.

    Args:
        function: called with each item.
        items: the items.

    Returns:
        An iterator over the results, in order.
    """
    return map(function, items)


def map_balanced(
    mapper: Mapper, function: Callable[[A], B], items: Iterable[A], size: Callable[[A], int]
) -> list[B]:
    """Call a function on every item, small items grouped into one task.

    What takes microseconds is not worth handing to a thread.

    Args:
        mapper: how tasks are run.
        function: called with each item.
        items: items of different sizes.
        size: an item's number of entries.

    Returns:
        The results in the order of the items.
    """
    largest_first = sorted(enumerate(items), key=lambda pair: -size(pair[1]))
    groups: list[list[tuple[int, A]]] = []
    filled = _TASK_ENTRIES
    for index, item in largest_first:
        if filled >= _TASK_ENTRIES:
            groups.append([])
            filled = 0
        groups[-1].append((index, item))
        filled += size(item)

    def visit(group: list[tuple[int, A]]) -> list[tuple[int, B]]:
        return [(index, function(item)) for index, item in group]

    results = [pair for group in mapper(visit, groups) for pair in group]
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


@contextmanager
def workers(device: torch.device | str = "cpu") -> Iterator[Mapper]:
    """Provide a parallel `map` over as many threads as torch would use.

    Inside the `with` block, torch's own parallelism is off in the whole process; it is restored
    afterwards. For any device but the CPU, and if torch has one thread, the plain `map` is
    provided.

    Args:
        device: where the data is.

    Returns:
        A context manager that provides the map.
    """
    count = torch.get_num_threads()
    if torch.device(device).type != "cpu" or count == 1:
        yield serial_map
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(count)

    def mapper(function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]:
        todo = list(items)
        if len(todo) < 2:
            return map(function, todo)
        return _results(pool, function, todo, _TASKS_AHEAD * count)

    try:
        yield mapper
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread.

    For small models a second thread gains a third at best, and loses a factor of ten beside another
    busy process, because the threads wait for each other at every operation.

    Returns:
        A context manager that restores the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _results(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
    remaining = iter(items)
    pending: deque[Future[B]] = deque(
        pool.submit(function, item) for item in islice(remaining, ahead)
    )
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()
