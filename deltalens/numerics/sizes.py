"""How work is divided into pieces, and how far from a guess a rank is searched first.

No result depends on these numbers; they decide time and memory. They are read from `SIZES` when the
work begins.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SIZES", "Sizes"]


@dataclass(slots=True)
class Sizes:
    """Sizes in entries, unless a field says otherwise."""

    chunk: int = 1 << 18
    """Visited at a time in memory: few enough to stay in cache, enough to hide the cost of a
    call."""
    device_chunk: int = 1 << 24
    """Visited at a time on an accelerator."""
    file_chunk: int = 1 << 19
    """Read from a file at a time."""
    part: int = 1 << 19
    """Given to one worker at a time; most tensors are several parts."""
    threaded: int = 1 << 22
    """In a live model, the size from which several threads, which have to be started, are faster
    than one."""
    hashed: int = 1 << 17
    """Indices hashed at a time on a CPU: enough that two threads rarely wait for each other's
    lock."""
    unit_sample: int = 1 << 14
    """Sampled of a unit: few, because in a file each of them touches a page."""
    tensor_sample: int = 1 << 14
    """Sampled of a tensor in memory."""
    hash_sigmas: float = 8.0
    """Standard errors on both sides of a rank's share within which its hash is searched first."""
    sample_sigmas: float = 3.0
    """Standard errors on both sides of a rank's share within which a sample brackets it."""
    crowded: float = 1 / 64
    """The share of a tensor's entries from which the last window is worse than one from a
    sample."""


SIZES = Sizes()
"""The sizes that all of deltalens reads."""
