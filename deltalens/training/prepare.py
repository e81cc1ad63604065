"""What a training begins with: its dtype, and its measurements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltalens.io.checkpoint import Checkpoint
from deltalens.scoring.loading import pick_dtype
from deltalens.scoring.rows import DataFile
from deltalens.scoring.suite import Suite
from deltalens.training.spec import TrainingSpec

__all__ = ["training_dtype", "training_suite"]


def training_dtype(dtype: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """Choose the dtype that a model is trained in.

    Args:
        dtype: its name; `auto` is fp32 on a CPU, else the checkpoint's.
        checkpoint: of the model.
        device: of the training.

    Returns:
        The dtype.
    """
    if dtype == "auto" and device.type == "cpu":
        return torch.float32
    return pick_dtype(dtype, checkpoint)


def training_suite(files: Sequence[DataFile], spec: TrainingSpec) -> Suite:
    """Choose what a training is measured by: DPO's loss of preferences, the targets of other rows.

    Args:
        files: the evaluation rows.
        spec: the training.

    Returns:
        The measurements.
    """
    return Suite(files=tuple(files), beta=spec.beta if spec.objective == "dpo" else None)
