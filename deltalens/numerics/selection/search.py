"""The one search, which everything that is ranked goes through.

A search takes a window that should hold the end of a prefix, visits the entries once, settles those
inside, and takes another window on a miss. What differs is the key (magnitude, signed value, hash),
where the window comes from (`windows`), what a visit does with entries outside (`streamed`:
nothing, or a mask; `cpu` and `device`: bits of masks, or zeros in place; `keep`: bits), and whether
ties are split by hash or stay together (`searches`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

__all__ = ["Search", "search"]

W = TypeVar("W")
S = TypeVar("S", contravariant=True)
F = TypeVar("F", covariant=True)


class Search(Protocol[W, S, F]):
    """Something to find by looking into windows."""

    windows: Iterator[W]
    """Where it may be: one window after the other, until one holds it."""

    def settle(self, window: W, observed: S, /) -> F | None:
        """Determine the result from what a visit observed.

        Args:
            window: the window that was visited.
            observed: what was observed in it.

        Returns:
            The result; None if it was not in the window.
        """


def search(
    searches: Sequence[Search[W, S, F]], visit: Callable[[Sequence[W]], Sequence[S]]
) -> list[F | None]:
    """Run several searches at once: all that are not settled yet share each visit.

    Args:
        searches: what to find.
        visit: visits all entries once, and returns what it observed in each window.

    Returns:
        The result of each search; None if it ran out of windows.
    """
    results: list[F | None] = [None] * len(searches)
    pending = list(range(len(searches)))
    while True:
        windows = {
            index: window
            for index in pending
            if (window := next(searches[index].windows, None)) is not None
        }
        if not windows:
            return results
        observations = visit(list(windows.values()))
        for (index, window), observed in zip(windows.items(), observations, strict=True):
            results[index] = searches[index].settle(window, observed)
        pending = [index for index in windows if results[index] is None]
