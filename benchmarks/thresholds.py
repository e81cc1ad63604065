"""The exact threshold of 16.8 M magnitudes, beside `torch.topk` in its faster direction."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import torch

from benchmarks.measure import interleaved, report
from deltalens.numerics.selection import Chunk, Source, find_boundaries, keep_highest, prefix_size
from deltalens.numerics.sizes import SIZES
from deltalens.numerics.workers import workers

SIZE = 1 << 24
ROUNDS = 9


def run() -> None:
    """fp32 and bf16 at k = 0.2 n; then 11 rates of 2 strategies from the same pass."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(SIZE, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        _one_threshold(normal.to(dtype))
    _all_rates(normal)


def _one_threshold(values: torch.Tensor) -> None:
    magnitudes, top = values.abs(), round(0.2 * SIZE)

    def ours() -> None:
        keep_highest(values, SIZE - top + 1, 0)

    contestants = {
        "ours": ours,
        "largest": lambda: magnitudes.topk(top, sorted=False),
        "smallest": lambda: magnitudes.topk(SIZE - top, largest=False, sorted=False),
    }
    seconds = interleaved(contestants, ROUNDS)
    faster = [min(pair) for pair in zip(seconds["largest"], seconds["smallest"], strict=True)]
    name = str(values.dtype).removeprefix("torch.")
    report(f"threshold-{name}", seconds["ours"], faster, peer_is="torch.topk, faster direction")


def _all_rates(values: torch.Tensor) -> None:
    source, magnitudes = _source_of(values), values.abs()
    rates = [Fraction(tenths, 10) for tenths in range(11)]
    sizes = [prefix_size(way, rate, SIZE) for way in ("trivial", "salient") for rate in rates]

    def ours() -> None:
        with workers() as mapper:
            find_boundaries(source, sizes, mapper=mapper)

    seconds = interleaved({"ours": ours, "sort": lambda: magnitudes.sort()}, 3)
    report("thresholds-11-rates-2-strategies", seconds["ours"], seconds["sort"], peer_is="one sort")


def _source_of(values: torch.Tensor) -> Source:
    def part(first: int) -> Iterator[Chunk]:
        for start in range(first, min(first + SIZES.part, SIZE), SIZES.chunk):
            yield Chunk("x", start, values[start : start + SIZES.chunk])

    return [partial(part, first) for first in range(0, SIZE, SIZES.part)]
