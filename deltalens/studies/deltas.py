"""The deltas of pairs of tensors, streamed chunk by chunk from the two files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deltalens.io.pairing import TensorPair
from deltalens.io.reader import torch_dtype
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import Sample
from deltalens.numerics.sizes import SIZES
from deltalens.studies.weights import StoredReader, runs

__all__ = ["DeltaChunk", "DeltaStream", "Span"]


class Span(NamedTuple):
    """Consecutive entries of a pair, from `start` to `stop`; the work of one thread."""

    pair: TensorPair
    start: int
    stop: int


class DeltaChunk:
    """Consecutive entries of a pair; valid until the next chunk is read."""

    __slots__ = ("_delta", "_scratch", "base", "ft", "pair", "start")

    def __init__(
        self, pair: TensorPair, start: int, ft: Tensor, base: Tensor, scratch: Scratch
    ) -> None:
        self.pair, self.start = pair, start
        self.ft = ft
        """1-D, in the fine-tune's stored dtype."""
        self.base = base
        """1-D, in the base's stored dtype."""
        self._scratch = scratch
        self._delta: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        """ft - base in fp32, 1-D, computed at the first access. (fp64 is subtracted in fp64, then
        rounded.)"""
        if self._delta is None:
            self._delta = self._subtract()
        return self._delta

    def _subtract(self) -> Tensor:
        size, device = self.ft.numel(), self.ft.device
        out = self._scratch.get("delta", torch.float32, size, device)
        if self.ft.dtype == self.base.dtype == torch.float32:
            return torch.sub(self.ft, self.base, out=out)
        if torch.float64 in (self.ft.dtype, self.base.dtype):
            return out.copy_(self.ft.double() - self.base.double())
        wide = self._scratch.get("wide", torch.float32, size, device)
        return out.copy_(self.ft).sub_(wide.copy_(self.base))


class DeltaStream:
    """Reads pairs chunk by chunk, into buffers that are allocated once per thread.

    Args:
        device: where chunks are put and deltas are computed.
        chunk: entries per chunk; no result depends on it.
    """

    def __init__(self, device: torch.device | str = "cpu", chunk: int | None = None) -> None:
        self.device = torch.device(device)
        self.chunk = chunk or (
            SIZES.file_chunk if self.device.type == "cpu" else SIZES.device_chunk
        )
        self._ft, self._base, self._scratch = StoredReader(), StoredReader(), Scratch()

    def parts(self, pairs: Iterable[TensorPair]) -> list[Span]:
        """Divide pairs into spans of a few chunks, which different threads may visit.

        Args:
            pairs: the pairs.

        Returns:
            The spans, in order.
        """
        step = self.chunk * (SIZES.part // self.chunk or 1)
        return [
            Span(pair, start, stop) for pair in pairs for start, stop in runs(0, pair.entries, step)
        ]

    def chunks(self, span: Span) -> Iterator[DeltaChunk]:
        """Read a span.

        Args:
            span: the entries.

        Yields:
            Its chunks, in order; each is valid until the next.

        Raises:
            CheckpointError: a file cannot be read.
        """
        for start, stop in runs(span.start, span.stop, self.chunk):
            yield self._read(span.pair, start, stop)

    def _read(self, pair: TensorPair, start: int, stop: int) -> DeltaChunk:
        ft = self._scratch.get("ft", torch_dtype(pair.ft), stop - start)
        base = self._scratch.get("base", torch_dtype(pair.base), stop - start)
        self._ft.read(pair.ft, start, ft)
        self._base.read(pair.base, start, base)
        return self._chunk(pair, start, ft, base)

    def _chunk(self, pair: TensorPair, start: int, ft: Tensor, base: Tensor) -> DeltaChunk:
        return DeltaChunk(pair, start, ft.to(self.device), base.to(self.device), self._scratch)

    def sample(self, pairs: Iterable[TensorPair], stride: int) -> Iterator[Sample]:
        """Sample the deltas of pairs.

        Args:
            pairs: the pairs.
            stride: read the entries 0, stride, 2 stride, ... of each.

        Yields:
            The deltas of each pair; valid until the next.
        """
        for pair in pairs:
            ft = self._ft.sample(pair.ft, pair.entries, stride)
            base = self._base.sample(pair.base, pair.entries, stride)
            indices = torch.arange(0, pair.entries, stride, device=self.device)
            yield Sample(pair.name, indices, self._chunk(pair, 0, ft, base).delta)
