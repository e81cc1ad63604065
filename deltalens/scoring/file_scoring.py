"""Loss, perplexity and exact match of a causal language model on rows with a target."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, errors_from
from deltalens.io.records import Measurement
from deltalens.scoring.finite import check_model
from deltalens.scoring.placement import input_device
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile
from deltalens.scoring.statistics import mean, ratio
from deltalens.scoring.tokens import Batch, Tokens, batches, encode_rows, padding_of
from deltalens.scoring.turns import ends_of

__all__ = ["Scoring", "batch_positions", "can_generate", "score"]

_LOGITS = 1 << 28
"""Bytes that the logits of a batch may take in fp32."""


def batch_positions(batch_tokens: int, vocabulary: int) -> int:
    """Limit the size of a batch, so that its fp32 logits take at most 256 MiB.

    Args:
        batch_tokens: the size requested, in tokens.
        vocabulary: number of tokens in the vocabulary.

    Returns:
        The number of tokens allowed, at least 1.
    """
    return max(1, min(batch_tokens, _LOGITS // (4 * max(1, vocabulary))))


class Scoring:
    """A data file that was tokenized once, to evaluate models on it.

    Exact match under greedy decoding takes one forward pass: when the model is fed the target,
    every argmax must be the next target token. (A target that continues after a token at which
    generation stops is never matched.) With `answer_pattern`, the answer is part of a longer text:
    the model generates, and the last match of the pattern is compared with that in the target.

    Args:
        data: the rows.
        model: the model that the study is about: its configuration decides how rows are tokenized.
        tokenizer: its tokenizer; None if it has none.
        batch_tokens: tokens per batch, padding included.
        answer_pattern: a regular expression that finds the answer in a text; its first group is
            compared, or the whole match if it has no group.

    Attributes:
        name: the data's name.
        sequences: the tokenized rows.
        batches: the same, in batches.
        left_out: number of rows that are too long, or without a token to predict.

    Raises:
        DeltaLensError: the model is not a causal language model, or has no tokenizer; or the rows
            do not fit it.
    """

    deciding_metric = "loss"
    """The metric by which the best checkpoint of a training is chosen: the lowest value wins."""

    def __init__(
        self,
        data: DataFile,
        model: nn.Module,
        tokenizer: Any,
        batch_tokens: int,
        answer_pattern: re.Pattern[str] | None = None,
    ) -> None:
        config: Any = model.config
        if tokenizer is None:
            raise DeltaLensError(
                "text rows need a tokenizer, but there is none in the fine-tune's folder"
            )
        if not can_generate(model):
            raise DeltaLensError(
                f"{type(model).__name__} is not a causal language model: loss and exact match are "
                "undefined; measure its fidelity instead, without data files"
            )
        self.name = data.name
        self._longest = longest_input(model)
        self.sequences, self.left_out = encode_rows(data, tokenizer, self._longest, model)
        self._stops = ends_of(tokenizer, model).stops
        self._answered = data.rows[0].answered
        self._tokenizer = tokenizer
        self._pattern = answer_pattern if self._answered else None
        vocabulary = config.get_text_config().vocab_size
        positions = batch_positions(batch_tokens, vocabulary)
        self._pad = padding_of(tokenizer, model)
        self.batches = batches(self.sequences, positions, self._pad)

    def check(self, model: nn.Module, where: str | Path) -> None:
        """Refuse a model that computes NaN or infinite logits on its longest row.

        Args:
            model: the model that the study is about.
            where: its folder, for the message.

        Raises:
            DeltaLensError: names the dtype, and says what to do.
        """
        longest = max(self.sequences, key=lambda sequence: len(sequence.ids))
        check_model(model, longest.ids, where)

    @torch.inference_mode()
    def measure(self, model: nn.Module) -> dict[str, Measurement]:
        """Evaluate a model.

        Args:
            model: a model with the vocabulary of the one that the study is about.

        Returns:
            `loss` (nats per target token), `perplexity` and, if rows have an answer, `exact_match`
            (fraction of rows), with standard errors over rows; NaN if the model's logits are not
            finite.

        Raises:
            DeltaLensError: the model fails on the rows.
        """
        count = len(self.sequences)
        losses, targets = torch.zeros(count, dtype=torch.float64), torch.zeros(count)
        correct = torch.zeros(count)
        for batch in self.batches:
            moved = batch.to(input_device(model))
            summed, matched = score(model, moved, match=self._answered and self._pattern is None)
            losses[batch.rows] = summed.double().cpu()
            if matched is not None:
                correct[batch.rows] = matched.cpu() * self._reachable(batch)
            targets[batch.rows] = batch.targets.sum(1).float()
        loss = ratio(losses, targets)
        perplexity = _exp(loss.value)
        metrics = {
            "loss": loss,
            "perplexity": Measurement(perplexity, perplexity * loss.stderr, loss.n),
        }
        if self._pattern is not None:
            correct = self._generated_correct(model).masked_fill(losses.isnan(), math.nan)
        return {"exact_match": mean(correct), **metrics} if self._answered else metrics

    def _reachable(self, batch: Batch) -> Tensor:
        """Whether generation can reach the end of each target, because none of its earlier tokens
        is a stop: 1 or 0, (B,)."""
        sequences = (self.sequences[row] for row in batch.rows.tolist())
        return torch.tensor(
            [float(self._stops.isdisjoint(s.ids[s.target : -1])) for s in sequences]
        )

    def _generated_correct(self, model: nn.Module) -> Tensor:
        """Whether each generated answer is that of the target: 1 or 0, (rows,)."""
        assert self._pattern is not None
        correct = torch.zeros(len(self.sequences))
        for batch in self.batches:
            rows = batch.rows.tolist()
            answers = self.answers(model, [self.sequences[row] for row in rows])
            for row, answer in zip(rows, answers, strict=True):
                sequence = self.sequences[row]
                target = sequence.ids[sequence.target :]
                texts = (
                    self._tokenizer.decode(list(ids), skip_special_tokens=True)
                    for ids in (target, answer)
                )
                expected, actual = (_answer(self._pattern, text) for text in texts)
                correct[row] = float(expected is not None and expected == actual)
        return correct

    def answers(self, model: Any, sequences: Sequence[Tokens]) -> list[list[int]]:
        """Generate an answer to each prompt, greedily.

        Prompts of different lengths are padded on the left, unless the model takes no position ids:
        it would take the padding as text.

        Args:
            model: a model with the vocabulary of the one that the study is about.
            sequences: tokenized rows; what stands before their targets is the prompt.

        Returns:
            The token ids of each answer, up to and with the first stop.

        Raises:
            DeltaLensError: the model cannot generate from the prompts.
        """
        if "position_ids" in inspect.signature(model.forward).parameters:
            return self._generate(model, sequences)
        generated: list[list[int]] = [[]] * len(sequences)
        for length in {sequence.target for sequence in sequences}:
            indices = [n for n, sequence in enumerate(sequences) if sequence.target == length]
            answers = self._generate(model, [sequences[n] for n in indices])
            for index, answer in zip(indices, answers, strict=True):
                generated[index] = answer
        return generated

    def _generate(self, model: Any, sequences: Sequence[Tokens]) -> list[list[int]]:
        """Greedy continuations of the prompts, until a stop or up to 1.5 times the length of the
        longest target."""
        from transformers import GenerationConfig

        prompts = [sequence.ids[: sequence.target] for sequence in sequences]
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        room = (self._longest or 1 << 30) - longest
        longest_target = max(len(sequence.ids) - sequence.target for sequence in sequences)
        settings = GenerationConfig(
            **_PLAINLY_GREEDY,
            max_new_tokens=max(1, min(room, longest_target + longest_target // 2)),
            pad_token_id=self._pad,
            eos_token_id=sorted(self._stops) or None,
        )
        device = input_device(model)
        with errors_from(
            "transformers", f"{type(model).__name__}: cannot generate from these rows"
        ):
            out = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
            )
        return [self._until_stop(answer) for answer in out[:, longest:].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        """Cut off what follows the first stop: padding, which a tokenizer may decode as text."""
        end = next((n for n, token in enumerate(ids, 1) if token in self._stops), len(ids))
        return ids[:end]


def can_generate(model: nn.Module) -> bool:
    """Tell whether a model is a causal language model, which continues a text.

    Returns:
        True if it can generate, and is not an encoder-decoder.
    """
    config: Any = model.config
    method = getattr(model, "can_generate", None)
    return bool(method and method()) and not getattr(config, "is_encoder_decoder", False)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def score(model: nn.Module, batch: Batch, *, match: bool) -> tuple[Tensor, Tensor | None]:
    """Score the targets of a batch in one forward pass.

    Args:
        model: a causal language model.
        batch: B sequences, on the model's device.
        match: whether to compare argmax and target.

    Returns:
        The loss of each row, summed over its targets, in nats: (B,). And, with `match`, whether
        every argmax of the row is the target: 1 or 0, NaN if its logits are not finite: (B,).

    Raises:
        DeltaLensError: the model fails on these rows.
    """
    with errors_from("transformers", f"{type(model).__name__}: cannot be evaluated on these rows"):
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    expected = batch.ids.roll(-1, dims=1)[batch.targets]
    chosen = logits[batch.targets].float()
    owner = batch.targets.nonzero()[:, 0]

    def by_row(of_targets: Tensor) -> Tensor:
        return of_targets.new_zeros(batch.ids.shape[0]).index_add_(0, owner, of_targets)

    loss = by_row(torch.nn.functional.cross_entropy(chosen, expected, reduction="none"))
    if not match:
        return loss, None
    highest, likeliest = chosen.max(-1)
    missed = (likeliest != expected).float().masked_fill(~highest.isfinite(), math.nan)
    summed = by_row(missed)
    return loss, (summed == 0).float().masked_fill(summed.isnan(), math.nan)


# `generate` takes whatever is None from the checkpoint's generation_config.json. With a chat
# model's repetition penalty, the answer would differ from the argmax of one forward pass.
_PLAINLY_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
}


def _answer(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match of a pattern (its first group, if it has one), without commas and surrounding
    spaces; None if there is no match."""
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    answer = matches[-1].group(1) if pattern.groups else matches[-1].group(0)
    return (answer or "").replace(",", "").strip()
