"""From rows to what trl trains on; tokenized as the studies tokenize what they measure."""

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
    """Rows as a `datasets.Dataset` of `input_ids` and `labels`, and how many were left out: too
    long, or without a token to predict.

    Args:
        data: the rows.
        tokenizer: the model's.
        longest: tokens that a row may have.
        whole: the loss is over all tokens, not over the completion (or last message) alone.
        model: that is trained.

    Raises:
        DataError: rows are preferences, or none fits.
    """
    from datasets import Dataset

    if data.rows[0].rejected is not None:
        raise DataError(f"{data.path}: rows are preferences; train on them with --objective dpo")
    sequences, left_out = encode_rows(data, tokenizer, longest, model)
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


def preferences(data: DataFile, tokenizer: Any, longest: int | None, model: Any) -> tuple[Any, int]:
    """Rows as a `datasets.Dataset` of `prompt`, `chosen` and `rejected`, for DPO, and how many were
    left out: too long, or without a token to predict.

    Args:
        data, tokenizer, longest, model: as of `tokenized`.

    Raises:
        DataError: rows are no preferences, are in part texts and in part messages, or none fits; or
            they are texts and the tokenizer has no token that ends them.
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
    rows = [_as_trl_has_it(data.rows[place], features) for place in encoded]
    return Dataset.from_list(rows, features=Features(features)), left_out


def _as_trl_has_it(row: Row, names: Any) -> dict[str, Any]:
    found = {
        "prompt": row.prompt,
        "chosen": row.completion,
        "rejected": row.rejected,
        "tools": row.tools,
        "chat_template_kwargs": dict(row.template),
    }
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if name in names
    }


def collator(config: Any, tokenizer: Any, model: Any) -> Any | None:
    """What makes batches of such rows, or None where trl's own choice will do.

    Args:
        config: trl's, of SFT or DPO.
        tokenizer, model: with neither a padding token nor an end of sequence, trl has nothing to
            pad with.
    """
    named = config.pad_token or tokenizer.pad_token or tokenizer.eos_token
    padding = padding_of(tokenizer, model)
    if named is not None:
        padding = tokenizer.convert_tokens_to_ids(named)
    if "beta" in {one.name for one in dataclasses.fields(config)}:
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
    """A collator of preferences without what a template writes behind an answer's end.

    Args:
        collate: trl's own, of `prompt_ids`, `chosen_ids` and `rejected_ids`.
        ends: where answers end.
    """

    def __init__(self, collate: Any, ends: Ends) -> None:
        self._collate, self._ends = collate, ends

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """A batch."""
        cut = {
            name: [one[name][: self._ends.length(one[name], 0)] for one in examples]
            for name in ("chosen_ids", "rejected_ids")
        }
        return self._collate(
            [
                {**one, "chosen_ids": chosen, "rejected_ids": rejected}
                for one, chosen, rejected in zip(examples, *cut.values(), strict=True)
            ]
        )
