"""What a study or a training would take: cells, memory, bytes and time, before anything runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltalens.io.checkpoint import Checkpoint
from deltalens.scoring.rows import DataFile

__all__ = ["StudyPlan", "plan_measuring", "plan_salience", "plan_training"]

_CHARACTERS_IN_A_TOKEN = 4
_FORWARD, _STEP = 2, 6
"""Floating-point operations for each parameter and token: of a forward pass, of a training step."""
_ADAM = 16
"""Bytes for each parameter that fp32 weights, their gradients and AdamW's two states take."""
_PASSES_OF_SALIENCE = 10
"""Passes over the calibration data: four for all metrics, and as much again and half for parts."""
_SUMS = 8
"""Bytes for each parameter, at most, of an fp32 sum and of scores made from it."""
_SIDE, _SECONDS = 1024, 0.2


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study or a training would take; its times may be off by a factor of two."""

    what: str
    """What it is made of: `cells`, `points`, `trainings`, `steps`."""
    count: int
    """How many of them, in all."""
    jobs: int
    """How many at once."""
    read_bytes: int
    """Of checkpoints, once."""
    memory_bytes: int
    """Of all jobs together: weights, and what training adds to them; without activations."""
    tokens: int
    """That one of them computes, about."""
    flops: float
    """Floating-point operations of one of them, about."""
    device: str

    def seconds(self) -> float:
        """How long all of them take, about, by the speed of a matrix product on this device.

        Returns:
            Seconds.
        """
        return self.count * self.flops / _flops_a_second(self.device)

    def as_json(self) -> Mapping[str, Any]:
        """Everything, for scripts.

        Returns:
            JSON values by name.
        """
        return {
            self.what: self.count,
            "jobs": self.jobs,
            "read_bytes": self.read_bytes,
            "memory_bytes": self.memory_bytes,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds(),
        }


def plan_measuring(
    what: str,
    count: int,
    checkpoints: Sequence[Checkpoint],
    files: Sequence[DataFile],
    dtype: torch.dtype,
    device: torch.device,
    jobs: int,
    fidelity_tokens: int,
    task_tokens: int = 0,
) -> StudyPlan:
    """Plan a study that measures a model in each cell.

    Args:
        what: its cells are called.
        count: of cells.
        checkpoints: that are read; the first is the model's.
        files: of rows that are measured on.
        dtype, device: of the model.
        jobs: cells at once, each with a model.
        fidelity_tokens: of the texts where there are no rows and tasks.
        task_tokens: of standard tasks.

    Returns:
        The plan.
    """
    entries = _entries(checkpoints[0])
    tokens = (sum(map(_tokens, files)) + task_tokens) or fidelity_tokens
    return StudyPlan(
        what=what,
        count=count,
        jobs=jobs,
        read_bytes=sum(map(_bytes, checkpoints)),
        memory_bytes=entries * dtype.itemsize * jobs,
        tokens=tokens,
        flops=float(_FORWARD * entries * tokens),
        device=str(device),
    )


def plan_training(
    what: str,
    count: int,
    checkpoint: Checkpoint,
    rows: DataFile,
    files: Sequence[DataFile],
    spec: Any,
    device: torch.device,
    jobs: int,
    task_tokens: int = 0,
) -> StudyPlan:
    """Plan trainings of one model.

    Args:
        what: they are called.
        count: of trainings.
        checkpoint: where they begin.
        rows: that they train on.
        files: of rows that are measured at their end.
        spec: the `TrainingSpec` that they share.
        device: of the model.
        jobs: trainings at once.
        task_tokens: of standard tasks that are measured at their end.

    Returns:
        The plan.
    """
    entries = _entries(checkpoint)
    in_a_step = min(spec.batch_size * spec.accumulate, len(rows.rows))
    steps = spec.steps or max(1, int(spec.epochs * -(-len(rows.rows) // in_a_step)))
    trained = int(steps * in_a_step * _tokens(rows) / max(1, len(rows.rows)))
    measured = sum(map(_tokens, files)) + task_tokens
    return StudyPlan(
        what=what,
        count=count,
        jobs=jobs,
        read_bytes=_bytes(checkpoint),
        memory_bytes=entries * _ADAM * jobs,
        tokens=trained + measured,
        flops=float(entries * (_STEP * trained + _FORWARD * measured)),
        device=str(device),
    )


def plan_salience(
    count: int,
    checkpoints: Sequence[Checkpoint],
    files: Sequence[DataFile],
    examples: int,
    dtype: torch.dtype,
    device: torch.device,
) -> StudyPlan:
    """Plan a study of salience: forward and backward passes over some rows, a few times.

    Args:
        count: of masks and comparisons.
        checkpoints: that are read; the first is the model's.
        files: of rows, the calibration data.
        examples: how many of the rows are used, at most.
        dtype: of the model.
        device: of the model.

    Returns:
        The plan.
    """
    entries = _entries(checkpoints[0])
    rows = sum(len(file.rows) for file in files)
    tokens = min(examples, rows) * sum(map(_tokens, files)) // max(1, rows)
    passes = _PASSES_OF_SALIENCE * _STEP * entries * tokens
    return StudyPlan(
        what="comparisons",
        count=count,
        jobs=1,
        read_bytes=sum(map(_bytes, checkpoints)),
        memory_bytes=entries * (dtype.itemsize + _SUMS),
        tokens=tokens,
        flops=passes / max(1, count),
        device=str(device),
    )


def _entries(checkpoint: Checkpoint) -> int:
    return sum(entry.numel for entry in checkpoint.tensors.values())


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(file.stat().st_size for file in checkpoint.headers)


def _tokens(file: DataFile) -> int:
    characters = sum(
        len(text) if isinstance(text, str) else sum(len(str(turn)) for turn in text or ())
        for row in file.rows
        for text in (row.text, row.prompt, row.completion, row.rejected, *row.sentences)
    )
    return max(len(file.rows), characters // _CHARACTERS_IN_A_TOKEN)


def _flops_a_second(device: str) -> float:
    """Of a matrix product in fp32, measured for a moment."""
    a = torch.ones(_SIDE, _SIDE, device=device)
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        (a @ a).sum().item()
        done += 1
    return done * 2 * _SIDE**3 / (time.perf_counter() - begun)
