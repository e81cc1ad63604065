"""How loops are compiled by numba, and what happens where the result cannot be kept.

numba keeps what it compiled in a file, beside the source or in the user's cache. In a read-only
container there is no such place, and a file may be torn: then a loop is compiled in memory, which
takes a few seconds in every process, and one warning says so.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

__all__ = ["compiled"]


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles a loop: without the interpreter's lock, without checks of bounds,
    kept for the next process where that can be.

    Args:
        options: further ones of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        loop = njit(nogil=True, boundscheck=False, **options)(function)
        try:
            loop._cache = _Kept(function)
        except RuntimeError as error:  # numba found no folder that it may write to.
            _warn(str(error))
        return loop

    return decorate


class _Kept(FunctionCache):  # type: ignore[misc]
    """numba's files of compiled code, whose loss costs time and nothing else."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code kept for a signature; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # Unpickling a torn file may raise anything.
            with suppress(OSError):
                self.flush()
            _warn(f"{type(error).__name__}: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for a signature, if there is room."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # As above: it reads the index first.
            _warn(f"{type(error).__name__}: {error}")


@functools.cache
def _warned() -> list[str]:
    return []


def _warn(why: str) -> None:
    """Say it once a process."""
    if _warned():
        return
    _warned().append(why)
    warnings.warn(
        f"compiled loops cannot be kept ({why}): they are compiled anew in every process, which "
        "takes a few seconds; NUMBA_CACHE_DIR names a folder for them",
        RuntimeWarning,
        stacklevel=2,
    )
