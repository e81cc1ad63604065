"""How a file of rows is measured, by the form of its rows."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.preferences import Preferences
from deltalens.scoring.rows import DataFile
from deltalens.scoring.sentence_scoring import SentenceScoring

__all__ = ["FileScoring", "metrics_of", "scoring_of"]

FileScoring = Scoring | Preferences | SentenceScoring
"""A file that was tokenized once, to evaluate models on it."""


def scoring_of(
    file: DataFile,
    reference: nn.Module,
    tokenizer: Any,
    *,
    batch_tokens: int,
    answer_pattern: re.Pattern[str] | None,
    beta: float | None,
) -> FileScoring:
    """Tokenize a file, to evaluate models on it.

    Args:
        file: the rows.
        reference: the model that the study is about; under DPO, rewards are relative to it.
        tokenizer: its tokenizer; None if it has none.
        batch_tokens: tokens per batch, padding included.
        answer_pattern: finds the answer in a generated text; None: the whole completion is the
            answer.
        beta: DPO's, if preferences are measured by their rewards; None: their chosen answers are
            measured like other rows.

    Returns:
        The labels of sentences, if rows have labels; preferences under DPO, if rows are
        preferences; otherwise the loss of their targets.

    Raises:
        DeltaLensError: the rows do not fit the model.
    """
    if file.labeled:
        return SentenceScoring(file, reference, tokenizer, batch_tokens)
    if beta is not None and file.rows[0].rejected is not None:
        return Preferences(file, reference, tokenizer, batch_tokens, beta)
    return Scoring(file, reference, tokenizer, batch_tokens, answer_pattern)


def metrics_of(file: DataFile) -> set[str]:
    """List the metrics that can be measured on a file, as far as its rows say.

    Args:
        file: the rows.

    Returns:
        Names of metrics. Whether labels that are numbers are classes or scores is up to the model.
    """
    if file.labeled:
        return {"accuracy", "f1", "cross_entropy", "pearson", "squared_error"}
    return {"loss", "perplexity"} | ({"exact_match"} if file.rows[0].answered else set())
