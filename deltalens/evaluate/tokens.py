"""From rows to tokens, once; and batches of them that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltalens.errors import DataError
from deltalens.evaluate.rows import DataFile, Row

__all__ = ["Batch", "Tokens", "batches", "encode_rows", "longest_input"]


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


def longest_input(config: Any) -> int | None:
    """How many positions a model has; None if its configuration does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        positions = getattr(text, name, None)
        if isinstance(positions, int) and positions > 0:
            return positions
    return None


def encode_rows(data: DataFile, tokenizer: Any, longest: int | None) -> tuple[list[Tokens], int]:
    """The rows as token sequences, and how many were left out: too long for the model, or
    without a token to predict.

    A text's targets are all its tokens but the first. A completion's are its tokens and the
    end-of-sequence token, as in training; a conversation's are its last message.

    Raises:
        DataError: no row fits, or the tokenizer has no chat template for `messages`.
    """
    encoded = []
    for row in data.rows:
        sequence = _encode(row, tokenizer, data)
        if row.text is not None and longest is not None:
            sequence = Tokens(sequence.ids[:longest], sequence.target)
        if 0 < sequence.target < len(sequence.ids) and len(sequence.ids) <= (longest or 1 << 62):
            encoded.append(sequence)
    if not encoded:
        raise DataError(f"{data.path}: no row has a target within the model's {longest} positions")
    return encoded, len(data.rows) - len(encoded)


def _encode(row: Row, tokenizer: Any, data: DataFile) -> Tokens:
    if row.text is not None:
        return Tokens(tuple(tokenizer(row.text)["input_ids"]), 1)
    if row.messages:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                f"{data.path}: rows have 'messages' and the tokenizer has no chat template; give "
                "'prompt' and 'completion' instead"
            )
        turns = list(row.messages)
        before = tokenizer.apply_chat_template(
            turns[:-1], add_generation_prompt=True, tokenize=False
        )
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(before):
            raise DataError(
                f"{data.path}: the chat template writes a conversation differently once it is "
                "answered; give 'prompt' and 'completion' instead"
            )
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        answer = tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"]
        return Tokens(tuple(prompt + answer), len(prompt))
    prompt = _without_end(tokenizer(row.prompt)["input_ids"], tokenizer)
    if not prompt and tokenizer.bos_token_id is not None:
        prompt = [tokenizer.bos_token_id]
    answer = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Tokens(tuple(prompt + answer + end), len(prompt))


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Some tokenizers end every text; a prompt goes on."""
    ended = len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return ids[:-1] if ended else ids


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
