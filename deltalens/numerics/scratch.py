"""Memory that a pass reuses, so that no chunk needs an allocation."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["Scratch"]


class Scratch(threading.local):
    """Buffers by name and dtype, one set per thread, each as large as the largest request so far.

    On a worker thread the C library returns freed memory to the system at once, so that a fresh
    buffer for every chunk would be paid for in page faults.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(
        self, name: str, dtype: torch.dtype, size: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return a buffer with arbitrary contents; the same memory at every call.

        Args:
            what: the buffer's name.
            dtype: its dtype.
            size: number of entries.
            device: used when the buffer is allocated.

        Returns:
            1-D, of `size` entries.
        """
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=device)
            self._buffers[name, dtype] = buffer
        return buffer[:size]

    def zeros(
        self, name: str, dtype: torch.dtype, size: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return a buffer that is zero when allocated; its user leaves it zero.

        Args:
            what: the buffer's name.
            dtype: its dtype.
            size: number of entries; the same at every call.
            device: used when the buffer is allocated.

        Returns:
            1-D, of `size` entries.
        """
        buffer = self._buffers.get((name, dtype))
        if buffer is None:
            buffer = torch.zeros(size, dtype=dtype, device=device)
            self._buffers[name, dtype] = buffer
        return buffer
