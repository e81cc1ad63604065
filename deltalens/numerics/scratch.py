"""Memory that a pass reuses: nothing is allocated anew for every chunk."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["Scratch"]


class Scratch(threading.local):
    """Buffers by name, made once per thread and as large as was ever asked for.

    On a thread of its own the C library gives freed memory back at once, so that a fresh buffer
    per chunk is paid for in page faults.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(
        self, what: str, dtype: torch.dtype, size: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A buffer of this size, with anything in it; the same memory at every call."""
        held = self._held.get((what, dtype))
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=dtype, device=device)
            self._held[what, dtype] = held
        return held[:size]

    def zeros(
        self, what: str, dtype: torch.dtype, size: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A buffer of always this size, zero when it is made; whoever uses it leaves it zero."""
        held = self._held.get((what, dtype))
        if held is None:
            held = torch.zeros(size, dtype=dtype, device=device)
            self._held[what, dtype] = held
        return held
