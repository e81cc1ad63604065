"""TensorBoard and Weights & Biases beside the run folder, fed from the same counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from deltalens.errors import DeltaLensError
from deltalens.gradients.ranked import Survey

__all__ = ["Sink", "make_sink"]

_WANDB_BINS = 512


class Sink(Protocol):
    """Takes the numbers of a step."""

    def log(self, step: int, surveys: Sequence[Survey]) -> None:
        """Pass on what was measured."""
        ...


def make_sink(given: Any) -> Sink:
    """What feeds a tracker: a TensorBoard `SummaryWriter`, or a Weights & Biases run.

    Raises:
        DeltaLensError: it is neither.
    """
    if hasattr(given, "add_histogram_raw"):
        return _TensorBoard(given)
    if hasattr(given, "log") and type(given).__module__.split(".")[0] == "wandb":
        return _Wandb(given)
    raise DeltaLensError(
        f"sink {given!r}: give a TensorBoard SummaryWriter or a Weights & Biases run"
    )


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, surveys: Sequence[Survey]) -> None:
        for one in surveys:
            low, high, counts = one.numbers.bins
            if not len(counts):
                continue
            self._writer.add_histogram_raw(
                f"gradients/{one.gradient.name}",
                min=float(low[0]),
                max=float(high[-1]),
                num=int(counts.sum()),
                sum=one.numbers.total,
                sum_squares=one.numbers.squares,
                bucket_limits=high.tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )
            self._writer.add_scalar(
                f"gradient_norm/{one.gradient.name}", math.sqrt(one.numbers.squares), step
            )


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, surveys: Sequence[Survey]) -> None:
        import wandb

        values: dict[str, Any] = {"deltalens/step": step}
        for one in surveys:
            low, high, counts = one.numbers.bins
            if len(counts):
                histogram = wandb.Histogram(np_histogram=contiguous_histogram(low, high, counts))
                values[f"gradients/{one.gradient.name}"] = histogram
            values[f"gradient_norm/{one.gradient.name}"] = math.sqrt(one.numbers.squares)
        self._run.log(values)


def contiguous_histogram(
    low: np.ndarray, high: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Occupied bins of log2 |x| as a histogram without gaps: counts (B,) and edges (B + 1,).

    Four bins an octave; one, where the range would take more than 512.
    """
    for per_octave in (4, 1):
        first = math.floor(math.log2(low[0])) * per_octave
        last = math.ceil(math.log2(high[-1])) * per_octave
        if last - first <= _WANDB_BINS:
            break
    # Within an octave the four bins have the same width in x, not in log2 x.
    octave = np.floor(np.log2(low))
    quarter = np.floor((low / 2.0**octave - 1) * per_octave)
    places = (octave * per_octave + quarter).astype(np.int64) - first
    found = np.zeros(last - first, dtype=np.int64)
    np.add.at(found, places, counts)
    steps = np.arange(first, last + 1)
    edges = np.floor(steps / per_octave) + np.log2(1 + (steps % per_octave) / per_octave)
    return found, edges
