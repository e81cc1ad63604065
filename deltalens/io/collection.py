"""Python's garbage collector, and work that makes very many objects at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused"]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Without runs of the collector, which looks at every object that is there whenever so many are
    new: over the headers of a mixture of experts (100,000 tensors) it took most of the time. Only
    for work that leaves no cycles behind."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
