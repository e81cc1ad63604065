"""How numba compiles loops, and what happens if the compiled code cannot be stored.

numba stores compiled code in a file beside the source or in the user's cache. A read-only container
has no such place, and a file may be torn. Then a loop is compiled in memory, which takes a few
seconds in every process, and a single warning says so.
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
    """Make a decorator that compiles a loop without the interpreter's lock and without bounds
    checks.

    The compiled code is stored for later processes where that is possible.

    Args:
        options: further options of `numba.njit`.

    Returns:
        The decorator.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        loop = njit(nogil=True, boundscheck=False, **options)(function)
        try:
            loop._cache = _Kept(function)
        except RuntimeError as error:  # numba found no writable folder.
            _warn(str(error))
        return loop

    return decorate


class _Kept(FunctionCache):  # type: ignore[misc]
    """numba's files of compiled code; losing them costs time and nothing else."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load the code stored for a signature; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # Unpickling a torn file may raise anything.
            with suppress(OSError):
                self.flush()
            _warn(f"{type(error).__name__}: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the code for a signature, if there is room."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # As above: it reads the index first.
            _warn(f"{type(error).__name__}: {error}")


@functools.cache
def _warned() -> list[str]:
    return []


def _warn(why: str) -> None:
    """Warn once per process."""
    if _warned():
        return
    _warned().append(why)
    warnings.warn(
        f"compiled loops cannot be stored ({why}) and are compiled again in every process, which "
        "takes a few seconds; set NUMBA_CACHE_DIR to a writable folder",
        RuntimeWarning,
        stacklevel=2,
    )
