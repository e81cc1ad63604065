"""What a training is measured by, on the way and at the end."""

from __future__ import annotations

from typing import Any

from torch import nn

from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.preferences import Preferences
from deltalens.scoring.rows import DataFile
from deltalens.training.asked import TrainingAsked

__all__ = ["scoring_of"]

_BATCH_TOKENS = 4096


def scoring_of(
    data: DataFile, asked: TrainingAsked, start: nn.Module, tokenizer: Any
) -> Scoring | Preferences:
    """How rows are measured: under DPO preferences against the model that the training starts from,
    and everything else by its targets.

    Args:
        data: the rows.
        asked: the training.
        start: the model as it is before the training.
        tokenizer: its own.

    Raises:
        DeltaLensError: the rows do not fit the model.
    """
    if asked.objective == "dpo" and data.rows[0].rejected is not None:
        return Preferences(data, start, tokenizer, _BATCH_TOKENS, asked.beta)
    return Scoring(data, start, tokenizer, _BATCH_TOKENS)
