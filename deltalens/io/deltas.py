"""The delta of a pair, streamed chunk by chunk straight from the two files."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deltalens.io.checkpoint import TensorReader, torch_dtype
from deltalens.io.pairing import TensorPair

__all__ = ["DeltaChunk", "DeltaStream", "Span"]

_CPU_CHUNK = 1 << 18
_DEVICE_CHUNK = 1 << 24
_PART = 1 << 22


class DeltaChunk(NamedTuple):
    """A run of consecutive entries of a pair; valid until the next one is asked for."""

    pair: TensorPair
    start: int
    ft: Tensor
    """1-D, in the fine-tune's stored dtype."""
    base: Tensor
    """1-D, in the base's stored dtype."""
    delta: Tensor
    """ft - base in fp32, 1-D. (fp64 is subtracted in fp64, then rounded.)"""


class Span(NamedTuple):
    """A run of a pair's entries, given to one worker."""

    pair: TensorPair
    start: int
    stop: int


class _Buffers(threading.local):
    """What each thread has of its own: open files and reused memory."""

    def __init__(self) -> None:
        self.ft, self.base = TensorReader(), TensorReader()
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(
        self, what: str, dtype: torch.dtype, size: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A buffer of this size, made when there is none as large."""
        buffer = self.memory.get((what, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=device)
            self.memory[what, dtype] = buffer
        return buffer[:size]


class DeltaStream:
    """Reads pairs chunk by chunk into buffers that are made once a thread.

    Args:
        device: where the chunks are wanted and the delta is computed.
        chunk: entries at a time; no result depends on it.
    """

    def __init__(self, device: torch.device | str = "cpu", chunk: int | None = None) -> None:
        self.device = torch.device(device)
        self.chunk = chunk or (_CPU_CHUNK if self.device.type == "cpu" else _DEVICE_CHUNK)
        self._buffers = _Buffers()

    def parts(self, pairs: Iterable[TensorPair]) -> list[Span]:
        """These pairs, cut into spans of a few chunks that different threads may visit."""
        step = self.chunk * (_PART // self.chunk or 1)
        return [
            Span(pair, start, min(start + step, pair.entries))
            for pair in pairs
            for start in range(0, pair.entries, step)
        ]

    def chunks(self, span: Span) -> Iterator[DeltaChunk]:
        """The chunks of a span, in order."""
        for start in range(span.start, span.stop, self.chunk):
            yield self._read(span.pair, start, min(start + self.chunk, span.stop))

    def _read(self, pair: TensorPair, start: int, stop: int) -> DeltaChunk:
        ft = self._buffers.get("ft", torch_dtype(pair.ft), stop - start)
        base = self._buffers.get("base", torch_dtype(pair.base), stop - start)
        self._buffers.ft.read(pair.ft, start, ft)
        self._buffers.base.read(pair.base, start, base)
        if self.device.type != "cpu":
            ft, base = ft.to(self.device), base.to(self.device)
        return DeltaChunk(pair, start, ft, base, self._subtract(ft, base))

    def _subtract(self, ft: Tensor, base: Tensor) -> Tensor:
        delta = self._buffers.get("delta", torch.float32, ft.numel(), self.device)
        if ft.dtype == base.dtype == torch.float32:
            return torch.sub(ft, base, out=delta)
        if torch.float64 in (ft.dtype, base.dtype):
            return delta.copy_(ft.double() - base.double())
        wide = self._buffers.get("wide", torch.float32, ft.numel(), self.device)
        return delta.copy_(ft).sub_(wide.copy_(base))
