"""TensorBoard and Weights & Biases as additional outputs, fed from the same counts as the run
folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from deltalens.errors import DeltaLensError
from deltalens.gradients.surveys import Survey

__all__ = ["Sink", "make_sink"]

_WANDB_BINS = 512


class Sink(Protocol):
    """Receives the measurements of each logged step."""

    def log(self, step: int, surveys: Sequence[Survey]) -> None:
        """Pass on the measurements of a step.

        Args:
            step: the step's number.
            surveys: the fetched surveys.
        """
        ...


def make_sink(tracker: Any) -> Sink:
    """Wrap a tracker's object as a sink.

    Args:
        tracker: a TensorBoard `SummaryWriter` or a Weights & Biases run.

    Returns:
        The sink that feeds it.

    Raises:
        DeltaLensError: the object is neither.
    """
    if hasattr(tracker, "add_histogram_raw"):
        return _TensorBoard(tracker)
    if hasattr(tracker, "log") and type(tracker).__module__.split(".")[0] == "wandb":
        return _Wandb(tracker)
    raise DeltaLensError(
        f"sinks: {tracker!r} is neither a TensorBoard SummaryWriter nor a Weights & Biases run"
    )


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, surveys: Sequence[Survey]) -> None:
        for survey in surveys:
            low, high, counts = survey.stats.bins
            if not len(counts):
                continue
            self._writer.add_histogram_raw(
                f"gradients/{survey.gradient.name}",
                min=float(low[0]),
                max=float(high[-1]),
                num=int(counts.sum()),
                sum=survey.stats.magnitude_sum,
                sum_squares=survey.stats.square_sum,
                bucket_limits=high.tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )
            self._writer.add_scalar(
                f"gradient_norm/{survey.gradient.name}", math.sqrt(survey.stats.square_sum), step
            )


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, surveys: Sequence[Survey]) -> None:
        import wandb

        values: dict[str, Any] = {"deltalens/step": step}
        for survey in surveys:
            low, high, counts = survey.stats.bins
            if len(counts):
                histogram = wandb.Histogram(np_histogram=contiguous_histogram(low, high, counts))
                values[f"gradients/{survey.gradient.name}"] = histogram
            values[f"gradient_norm/{survey.gradient.name}"] = math.sqrt(survey.stats.square_sum)
        self._run.log(values)


def contiguous_histogram(
    low: np.ndarray, high: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Convert occupied bins of log2 |x| to a histogram without gaps.

    It has four bins per octave, or one if the range would need more than 512.

    Args:
        low: lower edges of the occupied bins, ascending, fp64, (N,).
        high: upper edges, fp64, (N,).
        counts: entries per bin, int64, (N,).

    Returns:
        Counts (B,) and edges of log2 |x| (B + 1,).
    """
    for per_octave in (4, 1):
        first = math.floor(math.log2(low[0])) * per_octave
        last = math.ceil(math.log2(high[-1])) * per_octave
        if last - first <= _WANDB_BINS:
            break
    # Within an octave the four bins have the same width in x, not in log2 x.
    octave = np.floor(np.log2(low))
    quarter = np.floor((low / 2.0**octave - 1) * per_octave)
    indices = (octave * per_octave + quarter).astype(np.int64) - first
    filled = np.zeros(last - first, dtype=np.int64)
    np.add.at(filled, indices, counts)
    steps = np.arange(first, last + 1)
    edges = np.floor(steps / per_octave) + np.log2(1 + (steps % per_octave) / per_octave)
    return filled, edges
