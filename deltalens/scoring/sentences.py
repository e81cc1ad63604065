"""Sentences with labels as a model with a head over sequences takes them: tokens, and batches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import (
    DataError,
    DeltaLensError,
    describe_error,
    errors_from,
    is_library_error,
)
from deltalens.io.platform import quiet_panics
from deltalens.scoring.finite import are_numbers, no_numbers
from deltalens.scoring.labels import Labels, stored_labels
from deltalens.scoring.placement import input_device
from deltalens.scoring.rows import DataFile
from deltalens.scoring.tokens import check_tokens, padding_of

__all__ = [
    "Example",
    "check_sentences",
    "collate",
    "encode_sentences",
    "give_padding",
    "labels_of",
    "padding_in",
    "sentence_logits",
]

Example = Mapping[str, list[int]]
"""The inputs of one row, by the name that the model gives each."""
_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"


def labels_of(model: nn.Module) -> Labels | None:
    """Read what a model's head over sequences predicts.

    Args:
        model: a transformers model.

    Returns:
        The labels; None if it has no such head.

    Raises:
        DataError: each row of the head has several labels at once.
    """
    config: Any = model.config
    return stored_labels({**config.to_dict(), "architectures": [type(model).__name__]})


def encode_sentences(
    data: DataFile, tokenizer: Any, longest: int | None, model: nn.Module
) -> list[Example]:
    """Tokenize the sentences of rows, as transformers' `run_glue` does: both in one call, cut to
    the longest input, the longer one first.

    Args:
        data: labeled rows.
        tokenizer: the model's tokenizer.
        longest: number of tokens that a row may have; None: unlimited.
        model: the model, which decides which of the tokenizer's outputs it takes.

    Returns:
        The model's inputs for each row.

    Raises:
        DataError: the tokenizer fails on a row, or the model has no embedding of what it produces.
    """
    taken = {_IDS, _MASK, *inspect.signature(model.forward).parameters}

    def call(rows: Sequence[tuple[str, ...]]) -> dict[str, list[list[int]]]:
        texts = [list(column) for column in zip(*rows, strict=True)]
        encoded = tokenizer(*texts, truncation=longest is not None, max_length=longest)
        return {name: encoded[name] for name in encoded if name in taken}

    sentences = [row.sentences for row in data.rows]
    with quiet_panics():
        try:
            columns = call(sentences)
        except BaseException as error:  # Tokenizers raise all kinds.
            if not is_library_error(error):
                raise
            for row in data.rows:
                with errors_from("the tokenizer", f"{data.path}: {row.location}", kind=DataError):
                    call([row.sentences])
            raise DataError(f"{data.path}: the tokenizer says: {describe_error(error)}") from error
    types = getattr(model.config, "type_vocab_size", None)
    for index, row in enumerate(data.rows):
        if not columns[_IDS][index]:
            raise DataError(f"{data.path}: {row.location}: has no tokens")
        check_tokens(model, data, columns[_IDS][index], index)
        if types and max(columns.get(_TYPES, [[0]] * len(data.rows))[index]) >= types:
            raise DataError(
                f"{data.path}: {row.location}: the tokenizer gives the second sentence a type of "
                f"its own, but the model has only {types} (type_vocab_size); tokenizer and model "
                "do not match"
            )
    return [
        {name: list(values[index]) for name, values in columns.items()}
        for index in range(len(data.rows))
    ]


def collate(examples: Sequence[Example], model: Any, tokenizer: Any) -> dict[str, Tensor]:
    """Make a batch of B examples, padded on the right to the longest, L tokens.

    A decoder's head reads the last token that is not its configuration's padding token, so that is
    what they are padded with.

    Args:
        examples: the inputs of each row.
        model, tokenizer: they decide the padding token.

    Returns:
        (B, L) for each input.
    """
    configured = padding_in(model)
    padding = padding_of(tokenizer, model) if configured is None else configured
    length = max(len(example[_IDS]) for example in examples)
    return {
        name: torch.tensor(
            [
                [*example[name], *[padding if name == _IDS else 0] * (length - len(example[name]))]
                for example in examples
            ]
        )
        for name in examples[0]
    }


def give_padding(model: Any, tokenizer: Any, where: str | Path) -> str | None:
    """Give a model's configuration a padding token if it has none: without one, a decoder's head
    does not know where each row of a batch ends.

    Args:
        model: the model, whose configuration is changed.
        tokenizer: its tokenizer; its padding token is taken, else its end-of-sequence token.
        where: the model's folder, for the message.

    Returns:
        What was done, as a sentence; None if there was nothing to do.

    Raises:
        DeltaLensError: the tokenizer has neither token, or the model no embedding of them.
    """
    if padding_in(model) is not None:
        return None
    rows = int(model.get_input_embeddings().weight.shape[0])
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name)
        if isinstance(token, int) and 0 <= token < rows:
            model.config.get_text_config().pad_token_id = token
            return (
                f"its configuration had no padding token: pad_token_id is {token} now, the "
                f"tokenizer's {name}"
            )
    raise DeltaLensError(
        f"{where}: neither configuration nor tokenizer has a padding token (pad_token_id) or an "
        "end-of-sequence token, which batches of sentences need; give the tokenizer one"
    )


@torch.inference_mode()
def check_sentences(model: Any, tokenizer: Any, example: Example, where: str | Path) -> None:
    """Refuse a model with a head over sequences that computes NaN or infinite logits on a row.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        example: the inputs of the row.
        where: the model's folder, for the message.

    Raises:
        DeltaLensError: names the dtype, and says what to do; or the model fails on the row.
    """
    if not bool(are_numbers(sentence_logits(model, tokenizer, [example])).all()):
        raise no_numbers(model, where)


def sentence_logits(model: Any, tokenizer: Any, examples: Sequence[Example]) -> Tensor:
    """Compute the logits of a batch.

    Args:
        model: a model with a head over sequences.
        tokenizer: its tokenizer.
        examples: B rows.

    Returns:
        (B, classes) in fp32 on the CPU, with a graph where gradients are on; (B, 1) of scores.

    Raises:
        DeltaLensError: the model fails on the rows.
    """
    batch = collate(examples, model, tokenizer)
    device = input_device(model)
    with errors_from("transformers", f"{type(model).__name__}: cannot be evaluated on these rows"):
        logits: Tensor = model(**{name: ids.to(device) for name, ids in batch.items()}).logits
    return logits.float().cpu()


def padding_in(model: Any) -> int | None:
    """Look up the padding token of a model's configuration.

    Args:
        model: the model.

    Returns:
        The token; None if it has none.
    """
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    return padding if isinstance(padding, int) and padding >= 0 else None
