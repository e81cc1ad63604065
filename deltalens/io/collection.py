"""Pausing Python's garbage collector while very many objects are created."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused"]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector for the duration of the block.

    The collector visits every live object each time enough new ones have been allocated: while the
    headers of a mixture of experts (100,000 tensors) were read, it took most of the time. Use it
    only around work that leaves no reference cycles behind.

    Yields:
        None.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
