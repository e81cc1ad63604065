"""Rows as trl trains on them, tokenized as studies tokenize the rows that they measure."""

from __future__ import annotations

import dataclasses
from typing import Any

from deltalens.errors import DataError
from deltalens.scoring.rows import DataFile, Row
from deltalens.scoring.tokens import encode_preferences, encode_rows, padding_of
from deltalens.scoring.turns import Ends, ends_of

__all__ = ["collator", "preferences", "tokenized"]

_IGNORED = -100


def tokenized(
    data: DataFile, tokenizer: Any, longest: int | None, whole: bool, model: Any
) -> tuple[Any, int]:
    """Tokenize rows for supervised fine-tuning.

    Args:
        data: the rows.
        tokenizer: the model's.
        longest: most tokens in a row; longer rows are left out.
        whole: take the loss over all tokens, not only over the completion or last message.
        model: the model that is trained.

    Returns:
        A `datasets.Dataset` of `input_ids` and `labels`, and how many rows were left out because
        they are too long or have no token to predict.

    Raises:
        DataError: the rows are preferences, or none of them fits.
    """
    from datasets import Dataset

    if data.labeled:
        raise DataError(f"{data.path}: the rows have labels, and no text or completion to learn")
    if data.rows[0].rejected is not None:
        raise DataError(f"{data.path}: the rows are preferences: train with objective dpo")
    sequences, left_out = encode_rows(data, tokenizer, longest, model)
    rows = [
        {
            "input_ids": list(sequence.ids),
            "labels": [
                token if whole or position >= sequence.target else _IGNORED
                for position, token in enumerate(sequence.ids)
            ],
        }
        for sequence in sequences
    ]
    return Dataset.from_list(rows), left_out


def preferences(data: DataFile, tokenizer: Any, longest: int | None, model: Any) -> tuple[Any, int]:
    """Prepare rows of preferences for DPO; trl tokenizes them.

    Args:
        data, tokenizer, longest, model: as in `tokenized`.

    Returns:
        A `datasets.Dataset` of `prompt`, `chosen` and `rejected`, and how many rows were left out
        because they are too long or have no token to predict.

    Raises:
        DataError: the rows are no preferences, some are texts and some messages, or none of them
            fits; or they are texts and the tokenizer has no end-of-sequence token.
    """
    from datasets import Dataset, Features, Json, List, Value

    if data.rows[0].rejected is None:
        raise DataError(f"{data.path}: DPO needs rows with 'prompt', 'chosen' and 'rejected'")
    if len({row.conversation for row in data.rows}) > 1:
        raise DataError(
            f"{data.path}: some preferences are texts and some messages; split the file"
        )
    if tokenizer.eos_token is None and not data.rows[0].conversation:
        raise DataError(
            f"{data.path}: the tokenizer has no end-of-sequence token (eos_token), which trl ends "
            "chosen and rejected texts with; give the tokenizer one"
        )
    encoded, left_out = encode_preferences(data, tokenizer, longest, model)
    # As JSON, messages keep the keys they have; as a table each would get those of all.
    several = List(Json()) if data.rows[0].conversation else Value("string")
    features = {name: several for name in ("prompt", "chosen", "rejected")}
    if data.rows[0].conversation:
        features |= {"tools": List(Json()), "chat_template_kwargs": Json()}
    rows = [_trl_row(data.rows[index], features) for index in encoded]
    return Dataset.from_list(rows, features=Features(features)), left_out


def _trl_row(row: Row, names: Any) -> dict[str, Any]:
    """A row under trl's names."""
    values = {
        "prompt": row.prompt,
        "chosen": row.completion,
        "rejected": row.rejected,
        "tools": row.tools,
        "chat_template_kwargs": dict(row.template),
    }
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name in names
    }


def collator(config: Any, tokenizer: Any, model: Any) -> Any | None:
    """Choose what makes batches of such rows.

    Args:
        config: trl's configuration, of SFT or DPO.
        tokenizer, model: if they have neither a padding token nor an end of sequence, trl has
            nothing to pad with.

    Returns:
        A collator; None if trl's own choice will do.
    """
    named = config.pad_token or tokenizer.pad_token or tokenizer.eos_token
    padding = padding_of(tokenizer, model)
    if named is not None:
        padding = tokenizer.convert_tokens_to_ids(named)
    if "beta" in {field.name for field in dataclasses.fields(config)}:
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        collate = DataCollatorForPreference(
            pad_token_id=padding,
            max_length=config.max_length,
            truncation_mode=config.truncation_mode,
            pad_to_multiple_of=config.pad_to_multiple_of,
        )
        return _UpToTheEnd(collate, ends_of(tokenizer, model))
    if named is not None:
        return None
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(
        pad_token_id=padding, pad_to_multiple_of=config.pad_to_multiple_of
    )


class _UpToTheEnd:
    """Collates preferences without the text that a chat template adds after an answer's end.

    Args:
        collate: trl's own collator, of `prompt_ids`, `chosen_ids` and `rejected_ids`.
        ends: finds where answers end.
    """

    def __init__(self, collate: Any, ends: Ends) -> None:
        self._collate, self._ends = collate, ends

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """Make a batch."""
        cut = {
            name: [example[name][: self._ends.length(example[name], 0)] for example in examples]
            for name in ("chosen_ids", "rejected_ids")
        }
        return self._collate(
            [
                {**example, "chosen_ids": chosen, "rejected_ids": rejected}
                for example, chosen, rejected in zip(examples, *cut.values(), strict=True)
            ]
        )
