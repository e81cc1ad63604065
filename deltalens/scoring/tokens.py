"""From rows to tokens, once; and batches of them that fit in memory."""

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
    SECONDS_OF_TEMPLATE,
    check_template,
    ends_of,
    text_ends,
    written,
)

__all__ = ["Batch", "Tokens", "batches", "encode_preferences", "encode_rows", "padding_of"]


@dataclass(frozen=True)
class Tokens:
    """Token ids, and where the target begins: predicted are ids[target:]."""

    ids: tuple[int, ...]
    target: int


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length, padded on the right."""

    rows: Tensor
    """Their places in the list they came from: (B,)."""
    ids: Tensor
    """(B, L)."""
    mask: Tensor
    """(B, L): 1 on tokens, 0 on padding."""
    targets: Tensor
    """(B, L): true where the next token is a target; the last column never is."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = (tensor.to(device) for tensor in (self.rows, self.ids, self.mask, self.targets))
        return Batch(*moved)


def encode_rows(
    data: DataFile, tokenizer: Any, longest: int | None, model: Any | None = None
) -> tuple[list[Tokens], int]:
    """The rows as token sequences, and how many were left out: too long for the model, or
    without a token to predict.

    Ids and targets are those that trl's `SFTTrainer` trains on with `completion_only_loss`, up to
    the end of the answer: prompt and completion are tokenized together, and the target begins where
    the tokens of the prompt alone and those of the whole first differ. A text's targets are all its
    tokens but the first. Texts and completions end with the end-of-sequence token; a conversation
    ends as its template ends a turn. What a template or a tokenizer writes behind that is left out.

    Args:
        data: the rows.
        tokenizer: the model's.
        longest: tokens that a row may have; a text is cut there.
        model: tells what else ends an answer (its generation configuration), and which tokens are
            known.

    Raises:
        DataError: no row fits, the tokenizer has no chat template for conversations, template or
            tokenizer refuse a row, or the model does not know a token of it.
    """
    ends = ends_of(tokenizer, model)
    ids, prompts = _tokenize(data, tokenizer, "completion")
    encoded = []
    for place, (row, whole, prompt) in enumerate(zip(data.rows, ids, prompts, strict=True)):
        if row.text is not None:
            length, target = text_ends(ends, tokenizer).length(whole, 1), 1
            length = min(length, longest or length)
        else:
            # The first token of all is predicted from nothing.
            target = max(1, _common_prefix(prompt, whole))
            length = ends.length(whole, target)
        if target < length <= (longest or length):
            _check_known(model, data, whole[:length], place)
            encoded.append(Tokens(tuple(whole[:length]), target))
    if not encoded:
        raise _none_fits(data, longest)
    return encoded, len(data.rows) - len(encoded)


def encode_preferences(
    data: DataFile, tokenizer: Any, longest: int | None, model: Any | None = None
) -> tuple[dict[int, tuple[Tokens, Tokens]], int]:
    """Preferences as token sequences, and how many were left out: too long, or without a token to
    predict.

    Ids and targets are those that trl's `DPOTrainer` trains on, up to the end of each answer: the
    targets of both begin where the tokens of the prompt alone first differ from one of the wholes.

    Args:
        data, tokenizer, longest, model: as of `encode_rows`; no sequence is cut.

    Returns:
        The place of each row in the data, with the chosen and the rejected sequence.

    Raises:
        DataError: as of `encode_rows`.
    """
    ends = ends_of(tokenizer, model)
    chosen, prompts = _tokenize(data, tokenizer, "completion")
    rejected, _ = _tokenize(data, tokenizer, "rejected")
    encoded = {}
    for place, (prompt, *pair) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        target = max(1, min(_common_prefix(prompt, whole) for whole in pair))
        lengths = [ends.length(whole, target) for whole in pair]
        if target < min(lengths) and max(lengths) <= (longest or max(lengths)):
            for whole, length in zip(pair, lengths, strict=True):
                _check_known(model, data, whole[:length], place)
            first, second = (
                Tokens(tuple(whole[:length]), target)
                for whole, length in zip(pair, lengths, strict=True)
            )
            encoded[place] = first, second
    if not encoded:
        raise _none_fits(data, longest)
    return encoded, len(data.rows) - len(encoded)


def padding_of(tokenizer: Any, model: Any) -> int:
    """The token that sequences are padded with; attention masks hide it."""
    text = model.config.get_text_config()
    rows = _known(model)
    for found in (tokenizer.pad_token_id, getattr(text, "pad_token_id", None)):
        if isinstance(found, int) and found >= 0 and (rows is None or found < rows):
            return found
    return 0


def _known(model: Any) -> int | None:
    """How many tokens a model has an embedding of; None where it does not say."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def _check_known(model: Any | None, data: DataFile, whole: Sequence[int], place: int) -> None:
    """Refuse tokens that the model has no embedding of: on an accelerator they end the process."""
    rows = None if model is None else _known(model)
    if rows is not None and max(whole, default=0) >= rows:
        raise DataError(
            f"{data.path}: {data.rows[place].place}: its tokenizer makes token {max(whole):,} of "
            f"it, and the model knows {rows:,}; they do not belong together"
        )


def _tokenize(
    data: DataFile, tokenizer: Any, answer: Literal["completion", "rejected"]
) -> tuple[list[list[int]], list[list[int]]]:
    """Of every row the ids of the whole, and those of its prompt alone; two calls of the tokenizer
    for all rows of a kind."""
    wholes: list[list[int]] = [[]] * len(data.rows)
    prompts: list[list[int]] = [[]] * len(data.rows)
    end = tokenizer.eos_token or ""
    for conversation in (False, True):
        places = [n for n, row in enumerate(data.rows) if row.conversation == conversation]
        if not places:
            continue
        if conversation:
            check_template(tokenizer, data)
        with Deadline(SECONDS_OF_TEMPLATE) as deadline:
            pairs = []
            for n in places:
                deadline.restart(f"{data.path}: {data.rows[n].place}: the chat template")
                pairs.append(_texts(data.rows[n], tokenizer, data, answer, end))
        # A template writes special tokens itself.
        calls = [
            _ids(tokenizer, texts, data, places, special=not conversation)
            for texts in zip(*pairs, strict=True)
        ]
        for n, prompt, whole in zip(places, *calls, strict=True):
            prompts[n], wholes[n] = prompt, whole
    return wholes, prompts


def _texts(
    row: Row, tokenizer: Any, data: DataFile, answer: Literal["completion", "rejected"], end: str
) -> tuple[str, str]:
    """A row's prompt, and the whole."""
    found = row.text if row.text is not None else getattr(row, answer)
    prompt = row.prompt if row.prompt is not None else ""
    if isinstance(found, str) and isinstance(prompt, str):
        return prompt, prompt + found + ("" if end and found.endswith(end) else end)
    assert isinstance(found, tuple)
    assert isinstance(prompt, tuple)
    return (
        written(tokenizer, row, prompt, data, prompting=True),
        written(tokenizer, row, prompt + found, data),
    )


def _ids(
    tokenizer: Any, texts: Sequence[str], data: DataFile, places: Sequence[int], *, special: bool
) -> list[list[int]]:
    def call(some: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(
            list(some), add_special_tokens=special, return_attention_mask=False
        )["input_ids"]
        return found

    with quiet_panics():
        try:
            return call(texts)
        except BaseException as error:  # Of a library that raises no kind of its own.
            if not is_library_error(error):
                raise
            for text, place in zip(texts, places, strict=True):
                where = f"{data.path}: {data.rows[place].place}"
                with errors_from("the tokenizer", where, kind=DataError):
                    call([text])
            raise DataError(f"{data.path}: the tokenizer says: {describe_error(error)}") from error


def _none_fits(data: DataFile, longest: int | None) -> DataError:
    within = "" if longest is None else f" within {longest:,} tokens"
    return DataError(f"{data.path}: no row has a target{within}")


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(n for n in range(shorter) if one[n] != other[n])


def batches(sequences: Sequence[Tokens], tokens: int, pad: int) -> list[Batch]:
    """Sort by length, and cut into batches of at most `tokens` positions; one sequence at least."""
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place].ids))
    made, start = [], 0
    while start < len(order):
        length = len(sequences[order[start]].ids)
        stop = start + max(1, tokens // length)
        made.append(_batch(sequences, order[start:stop], length, pad))
        start = stop
    return made


def _batch(sequences: Sequence[Tokens], rows: list[int], length: int, pad: int) -> Batch:
    ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.zeros(len(rows), length, dtype=torch.bool)
    for place, row in enumerate(rows):
        sequence = sequences[row]
        end = len(sequence.ids)
        ids[place, :end] = torch.tensor(sequence.ids)
        mask[place, :end] = 1
        targets[place, sequence.target - 1 : end - 1] = True
    return Batch(torch.tensor(rows), ids, mask, targets)
