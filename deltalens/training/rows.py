"""From rows to what trl trains on; tokenised as the studies tokenise what they measure."""

from __future__ import annotations

from typing import Any

from deltalens.errors import DataError
from deltalens.evaluate.rows import DataFile
from deltalens.evaluate.tokens import encode_rows

__all__ = ["preferences", "tokenised"]

_IGNORED = -100


def tokenised(data: DataFile, tokenizer: Any, longest: int | None, whole: bool) -> tuple[Any, int]:
    """Rows as a `datasets.Dataset` of `input_ids` and `labels`, and how many were left out: too
    long, or without a token to predict.

    Args:
        data: the rows.
        tokenizer: the model's.
        longest: tokens that a row may have.
        whole: the loss is over all tokens, not over the completion (or last message) alone.

    Raises:
        DataError: rows are preferences, or none fits.
    """
    from datasets import Dataset

    if data.rows[0].rejected is not None:
        raise DataError(f"{data.path}: rows are preferences; train on them with --objective dpo")
    sequences, left_out = encode_rows(data, tokenizer, longest)
    rows = [
        {
            "input_ids": list(one.ids),
            "labels": [
                token if whole or place >= one.target else _IGNORED
                for place, token in enumerate(one.ids)
            ],
        }
        for one in sequences
    ]
    return Dataset.from_list(rows), left_out


def preferences(data: DataFile) -> Any:
    """Rows as a `datasets.Dataset` of `prompt`, `chosen` and `rejected`, for DPO.

    Raises:
        DataError: rows are no preferences.
    """
    from datasets import Dataset

    if data.rows[0].rejected is None:
        raise DataError(f"{data.path}: DPO needs rows with 'prompt', 'chosen' and 'rejected'")
    return Dataset.from_list(
        [
            {"prompt": row.prompt, "chosen": row.completion, "rejected": row.rejected}
            for row in data.rows
        ]
    )
