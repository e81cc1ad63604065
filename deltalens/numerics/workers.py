"""Passes over parts of the data, on all cores.

torch splits every operation over its threads and joins them again. For the short operations of a
pass that stays in cache the joins cost more than the work, and on a busy machine far more. So a
pass gives whole parts to worker threads, and each operation stays on its thread.
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

_WORTH = 1 << 19
"""Entries that are worth a task of their own."""
_AHEAD = 4
"""Tasks per thread that are begun before the results of the first are taken: results may be large,
and none is kept for longer than it is waited for."""

A = TypeVar("A")
B = TypeVar("B")


class Mapper(Protocol):
    """Calls a function on every item; results come in the order of the items."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]:
        """Like the builtin `map`."""
        ...


def serial_map(function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]:
    """One item after the other, on the calling thread."""
    return map(function, items)


def map_balanced(
    mapper: Mapper, function: Callable[[A], B], items: Iterable[A], size: Callable[[A], int]
) -> list[B]:
    """`function` of every item, in their order, small ones together: what takes microseconds is not
    worth handing to a thread.

    Args:
        mapper: how to visit.
        function: of one item.
        items: of different sizes.
        size: of one item, in entries.
    """
    order = sorted(enumerate(items), key=lambda one: -size(one[1]))
    groups: list[list[tuple[int, A]]] = []
    filled = _WORTH
    for place, item in order:
        if filled >= _WORTH:
            groups.append([])
            filled = 0
        groups[-1].append((place, item))
        filled += size(item)

    def visit(group: list[tuple[int, A]]) -> list[tuple[int, B]]:
        return [(place, function(item)) for place, item in group]

    found = [one for group in mapper(visit, groups) for one in group]
    return [result for _, result in sorted(found, key=lambda one: one[0])]


@contextmanager
def workers(device: torch.device | str = "cpu") -> Iterator[Mapper]:
    """A parallel `map` for the duration of the block, over as many threads as torch would use.

    Inside the block torch's own parallelism is off (in the whole process), and restored after.
    For any device but the CPU, and where torch has one thread, it is the plain `map`.
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
        return _results(pool, function, todo, _AHEAD * count)

    try:
        yield mapper
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: for small models two gain a third at best, and lose a factor of ten
    beside another busy process, as they wait for each other at every operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _results(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
    todo = iter(items)
    waiting: deque[Future[B]] = deque(pool.submit(function, item) for item in islice(todo, ahead))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(todo, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()
