"""Tokenizing rows once, and grouping them in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from deltalens.errors import DataError, describe_error, errors_from, is_library_error
from deltalens.io.platform import quiet_panics
from deltalens.scoring.deadline import Deadline
from deltalens.scoring.rows import DataFile, Row
from deltalens.scoring.turns import (
    TEMPLATE_SECONDS,
    apply_template,
    check_template,
    ends_of,
    text_ends,
)

__all__ = [
    "Batch",
    "Tokens",
    "batches",
    "check_tokens",
    "encode_preferences",
    "encode_rows",
    "padding_of",
]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a sequence, and where its target begins: `ids[target:]` are predicted."""

    ids: tuple[int, ...]
    target: int
    """Index of the first token of the target."""


@dataclass(frozen=True)
class Batch:
    """B sequences of similar length, padded on the right to length L."""

    rows: Tensor
    """(B,): their indices in the list of sequences."""
    ids: Tensor
    """(B, L): token ids."""
    mask: Tensor
    """(B, L): 1 for tokens, 0 for padding."""
    targets: Tensor
    """(B, L): true where the next token is a target; never in the last column."""

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device.

        Args:
            device: the device.

        Returns:
            The batch on that device.
        """
        moved = (tensor.to(device) for tensor in (self.rows, self.ids, self.mask, self.targets))
        return Batch(*moved)


def encode_rows(
    data: DataFile, tokenizer: Any, longest: int | None, model: Any | None = None
) -> tuple[list[Tokens], int]:
    """Tokenize rows.

    Token ids and targets are those that trl's `SFTTrainer` trains on with `completion_only_loss`,
    up to the end of the answer. Prompt and completion are tokenized together; the target begins
    where the tokens of the prompt alone first differ from those of the whole. In a text, all tokens
    except the first are targets. Texts and completions end with the end-of-sequence token, and
    conversations as their template ends a turn; whatever a template or tokenizer appends after that
    is left out.

    Args:
        data: the rows.
        tokenizer: the model's tokenizer.
        longest: number of tokens that a row may have; longer texts are cut. None: unlimited.
        model: the model; its generation configuration can add tokens that end an answer, and its
            embedding limits the tokens. None: neither.

    Returns:
        The tokenized rows, and how many rows were left out because they are too long or have no
        token to predict.

    Raises:
        DataError: all rows were left out; rows are conversations, and the tokenizer has no chat
            template; the template or tokenizer fails on a row; or the model has no embedding of a
            token.
    """
    ends = ends_of(tokenizer, model)
    wholes, prompts = _tokenize(data, tokenizer, "completion")
    encoded = []
    for index, (row, whole, prompt) in enumerate(zip(data.rows, wholes, prompts, strict=True)):
        if row.text is not None:
            length, target = text_ends(ends, tokenizer).length(whole, 1), 1
            length = min(length, longest or length)
        else:
            # There is nothing from which to predict the first token.
            target = max(1, _common_prefix(prompt, whole))
            length = ends.length(whole, target)
        if target < length <= (longest or length):
            check_tokens(model, data, whole[:length], index)
            encoded.append(Tokens(tuple(whole[:length]), target))
    if not encoded:
        raise _none_fits(data, longest)
    return encoded, len(data.rows) - len(encoded)


def encode_preferences(
    data: DataFile, tokenizer: Any, longest: int | None, model: Any | None = None
) -> tuple[dict[int, tuple[Tokens, Tokens]], int]:
    """Tokenize preferences.

    Token ids and targets are those that trl's `DPOTrainer` trains on, up to the end of each answer.
    The targets of both answers begin where the tokens of the prompt alone first differ from those
    of prompt and answer.

    Args:
        data, tokenizer, longest, model: see `encode_rows`; no sequence is cut.

    Returns:
        The chosen and the rejected sequence of each row, by the row's index; and how many rows were
        left out because they are too long or have no token to predict.

    Raises:
        DataError: see `encode_rows`.
    """
    ends = ends_of(tokenizer, model)
    chosen, prompts = _tokenize(data, tokenizer, "completion")
    rejected, _ = _tokenize(data, tokenizer, "rejected")
    encoded = {}
    for index, (prompt, *pair) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        target = max(1, min(_common_prefix(prompt, whole) for whole in pair))
        lengths = [ends.length(whole, target) for whole in pair]
        if target < min(lengths) and max(lengths) <= (longest or max(lengths)):
            for whole, length in zip(pair, lengths, strict=True):
                check_tokens(model, data, whole[:length], index)
            first, second = (
                Tokens(tuple(whole[:length]), target)
                for whole, length in zip(pair, lengths, strict=True)
            )
            encoded[index] = first, second
    if not encoded:
        raise _none_fits(data, longest)
    return encoded, len(data.rows) - len(encoded)


def padding_of(tokenizer: Any, model: Any) -> int:
    """Choose the token with which sequences are padded; attention masks hide it.

    Args:
        tokenizer: the model's tokenizer.
        model: the model.

    Returns:
        The tokenizer's or model's padding token, if the model has an embedding of it; else 0.
    """
    text = model.config.get_text_config()
    rows = _embedding_rows(model)
    for token in (tokenizer.pad_token_id, getattr(text, "pad_token_id", None)):
        if isinstance(token, int) and token >= 0 and (rows is None or token < rows):
            return token
    return 0


def _embedding_rows(model: Any) -> int | None:
    """The number of tokens that a model has embeddings of; None if it is unknown."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def check_tokens(model: Any | None, data: DataFile, ids: Sequence[int], index: int) -> None:
    """Refuse tokens without an embedding: on an accelerator they would end the process.

    Args:
        model: the model; None: nothing is known of it.
        data: the rows.
        ids: the tokens of a row.
        index: of that row.

    Raises:
        DataError: names the row, the token, and how many the model has.
    """
    rows = None if model is None else _embedding_rows(model)
    if rows is not None and max(ids, default=0) >= rows:
        raise DataError(
            f"{data.path}: {data.rows[index].location}: the tokenizer produces token {max(ids):,}, "
            f"but the model has only {rows:,} tokens; tokenizer and model do not match"
        )


def _tokenize(
    data: DataFile, tokenizer: Any, answer: Literal["completion", "rejected"]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each whole row, and of its prompt alone, with two calls of the tokenizer for all
    rows of a kind."""
    wholes: list[list[int]] = [[]] * len(data.rows)
    prompts: list[list[int]] = [[]] * len(data.rows)
    end = tokenizer.eos_token or ""
    for conversation in (False, True):
        indices = [n for n, row in enumerate(data.rows) if row.conversation == conversation]
        if not indices:
            continue
        if conversation:
            check_template(tokenizer, data)
        with Deadline(TEMPLATE_SECONDS) as deadline:
            pairs = []
            for n in indices:
                deadline.restart(f"{data.path}: {data.rows[n].location}: the chat template")
                pairs.append(_texts(data.rows[n], tokenizer, data, answer, end))
        # A chat template writes special tokens itself.
        calls = [
            _ids(tokenizer, texts, data, indices, special=not conversation)
            for texts in zip(*pairs, strict=True)
        ]
        for n, prompt, whole in zip(indices, *calls, strict=True):
            prompts[n], wholes[n] = prompt, whole
    return wholes, prompts


def _texts(
    row: Row, tokenizer: Any, data: DataFile, answer: Literal["completion", "rejected"], end: str
) -> tuple[str, str]:
    """The text of a row's prompt, and of prompt and answer."""
    target = row.text if row.text is not None else getattr(row, answer)
    prompt = row.prompt if row.prompt is not None else ""
    if isinstance(target, str) and isinstance(prompt, str):
        return prompt, prompt + target + ("" if end and target.endswith(end) else end)
    assert isinstance(target, tuple)
    assert isinstance(prompt, tuple)
    return (
        apply_template(tokenizer, row, prompt, data, prompting=True),
        apply_template(tokenizer, row, prompt + target, data),
    )


def _ids(
    tokenizer: Any, texts: Sequence[str], data: DataFile, indices: Sequence[int], *, special: bool
) -> list[list[int]]:
    def call(batch: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(
            list(batch), add_special_tokens=special, return_attention_mask=False
        )["input_ids"]
        return ids

    with quiet_panics():
        try:
            return call(texts)
        except BaseException as error:  # Tokenizers raise all kinds.
            if not is_library_error(error):
                raise
            for text, index in zip(texts, indices, strict=True):
                where = f"{data.path}: {data.rows[index].location}"
                with errors_from("the tokenizer", where, kind=DataError):
                    call([text])
            raise DataError(f"{data.path}: the tokenizer says: {describe_error(error)}") from error


def _none_fits(data: DataFile, longest: int | None) -> DataError:
    within = "" if longest is None else f" within the model's {longest:,} tokens"
    return DataError(f"{data.path}: no row has a token to predict{within}")


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens that both sequences begin with."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(n for n in range(shorter) if first[n] != second[n])


def batches(sequences: Sequence[Tokens], tokens: int, pad: int) -> list[Batch]:
    """Sort sequences by length, and group them in batches.

    Args:
        sequences: the sequences.
        tokens: tokens per batch, padding included; a batch has at least one sequence.
        pad: the padding token.

    Returns:
        The batches, longest sequences first.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index].ids))
    grouped, start = [], 0
    while start < len(order):
        length = len(sequences[order[start]].ids)
        stop = start + max(1, tokens // length)
        grouped.append(_batch(sequences, order[start:stop], length, pad))
        start = stop
    return grouped


def _batch(sequences: Sequence[Tokens], indices: list[int], length: int, pad: int) -> Batch:
    ids = torch.full((len(indices), length), pad, dtype=torch.int64)
    mask = torch.zeros(len(indices), length, dtype=torch.int64)
    targets = torch.zeros(len(indices), length, dtype=torch.bool)
    for row, index in enumerate(indices):
        sequence = sequences[index]
        end = len(sequence.ids)
        ids[row, :end] = torch.tensor(sequence.ids)
        mask[row, :end] = 1
        targets[row, sequence.target - 1 : end - 1] = True
    return Batch(torch.tensor(indices), ids, mask, targets)
