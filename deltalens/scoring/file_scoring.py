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
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile
from deltalens.scoring.statistics import mean, ratio
from deltalens.scoring.tokens import Batch, Tokens, batches, encode_rows, padding_of
from deltalens.scoring.turns import ends_of

__all__ = ["Scoring", "batch_positions", "can_generate", "score"]

_LOGITS = 1 << 28
"""Bytes that a batch's logits may take in fp32."""


def batch_positions(batch_tokens: int, vocabulary: int) -> int:
    """How many positions a batch may have: as asked, and no more than 256 MiB of fp32 logits."""
    return max(1, min(batch_tokens, _LOGITS // (4 * max(1, vocabulary))))


class Scoring:
    """A data file, tokenized once, to be measured on a model again and again.

    Exact match under greedy decoding takes one forward: fed the target, every argmax has to be the
    next target token. (A target that goes on behind a token at which generation stops is never
    matched.) With `answer_pattern` the answer lies inside a longer text: then the model generates,
    and what the pattern finds last is compared with what it finds in the target.

    Raises:
        DeltaLensError: the model is no causal language model, or has no tokenizer.
    """

    decides = "loss"
    """The metric by which the best moment of a training is chosen; low is good."""

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
                "rows of text need a tokenizer, and the fine-tune's folder has none"
            )
        if not can_generate(model):
            raise DeltaLensError(
                f"{type(model).__name__} is no causal language model: loss and exact match are not "
                "defined; measure its fidelity, without data files"
            )
        self.name = data.name
        self._longest = longest_input(model)
        self._sequences, self.left_out = encode_rows(data, tokenizer, self._longest, model)
        self._stops = ends_of(tokenizer, model).stops
        self._answered = data.rows[0].answered
        self._tokenizer = tokenizer
        self._pattern = answer_pattern if self._answered else None
        vocabulary = config.get_text_config().vocab_size
        positions = batch_positions(batch_tokens, vocabulary)
        self._pad = padding_of(tokenizer, model)
        self._batches = batches(self._sequences, positions, self._pad)

    def check(self, model: nn.Module, where: str | Path) -> None:
        """Refuse a model that computes no numbers, by its longest row.

        Args:
            model: that the study is about.
            where: its folder.

        Raises:
            DeltaLensError: with the dtype, and what to do.
        """
        check_model(model, max(self._sequences, key=lambda one: len(one.ids)).ids, where)

    @torch.inference_mode()
    def measure(self, model: nn.Module) -> dict[str, Measurement]:
        """`loss` (nats per target token), `perplexity`, and `exact_match` where rows have a target
        of their own; standard errors over examples. NaN where the model computes no numbers."""
        count = len(self._sequences)
        losses, targets = torch.zeros(count, dtype=torch.float64), torch.zeros(count)
        right = torch.zeros(count)
        for batch in self._batches:
            moved = batch.to(next(model.parameters()).device)
            summed, matched = score(model, moved, match=self._answered and self._pattern is None)
            losses[batch.rows] = summed.double().cpu()
            if matched is not None:
                right[batch.rows] = matched.cpu() * self._reached(batch)
            targets[batch.rows] = batch.targets.sum(1).float()
        loss = ratio(losses, targets)
        perplexity = _exp(loss.value)
        found = {
            "loss": loss,
            "perplexity": Measurement(perplexity, perplexity * loss.stderr, loss.n),
        }
        if self._pattern is not None:
            right = self._generated_right(model).masked_fill(losses.isnan(), math.nan)
        return {"exact_match": mean(right), **found} if self._answered else found

    def _reached(self, batch: Batch) -> Tensor:
        """Which targets generation can reach the end of: it stops at none of their earlier tokens.
        (B,)."""
        sequences = (self._sequences[row] for row in batch.rows.tolist())
        return torch.tensor(
            [float(self._stops.isdisjoint(s.ids[s.target : -1])) for s in sequences]
        )

    def _generated_right(self, model: nn.Module) -> Tensor:
        assert self._pattern is not None
        right = torch.zeros(len(self._sequences))
        for batch in self._batches:
            rows = batch.rows.tolist()
            answers = self._answers(model, [self._sequences[row] for row in rows])
            for row, answer in zip(rows, answers, strict=True):
                sequence = self._sequences[row]
                target = sequence.ids[sequence.target :]
                texts = (
                    self._tokenizer.decode(list(ids), skip_special_tokens=True)
                    for ids in (target, answer)
                )
                wanted, got = (_answer(self._pattern, text) for text in texts)
                right[row] = float(wanted is not None and wanted == got)
        return right

    def _answers(self, model: Any, sequences: Sequence[Tokens]) -> list[list[int]]:
        """What a model generates. Prompts of several lengths are padded in front; to a model that
        is not told its positions the padding would be a part of the text."""
        if "position_ids" in inspect.signature(model.forward).parameters:
            return self._generate(model, sequences)
        found: list[list[int]] = [[]] * len(sequences)
        for length in {sequence.target for sequence in sequences}:
            places = [n for n, sequence in enumerate(sequences) if sequence.target == length]
            answers = self._generate(model, [sequences[n] for n in places])
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found

    def _generate(self, model: Any, sequences: Sequence[Tokens]) -> list[list[int]]:
        """Greedy continuations of the prompts up to where they stop, or half as long again as the
        longest target."""
        from transformers import GenerationConfig

        prompts = [sequence.ids[: sequence.target] for sequence in sequences]
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, longest - len(prompt) :] = torch.tensor(prompt)
            mask[place, longest - len(prompt) :] = 1
        room = (self._longest or 1 << 30) - longest
        wanted = max(len(sequence.ids) - sequence.target for sequence in sequences)
        settings = GenerationConfig(
            **_PLAINLY_GREEDY,
            max_new_tokens=max(1, min(room, wanted + wanted // 2)),
            pad_token_id=self._pad,
            eos_token_id=sorted(self._stops) or None,
        )
        device = next(model.parameters()).device
        with errors_from(
            "transformers", f"{type(model).__name__}: cannot generate from these rows"
        ):
            out = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
            )
        return [self._until_stop(answer) for answer in out[:, longest:].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        """Behind the first stop there is padding, which a tokenizer may take for text."""
        end = next((n for n, token in enumerate(ids, 1) if token in self._stops), len(ids))
        return ids[:end]


def can_generate(model: nn.Module) -> bool:
    """Whether a model continues a text: a causal language model."""
    config: Any = model.config
    able = getattr(model, "can_generate", None)
    return bool(able and able()) and not getattr(config, "is_encoder_decoder", False)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def score(model: nn.Module, batch: Batch, *, match: bool) -> tuple[Tensor, Tensor | None]:
    """Per row: the summed loss of its targets, and, if asked for, whether every argmax is the
    target, 1 or 0, and NaN where the logits are no numbers: (B,)."""
    with errors_from("transformers", f"{type(model).__name__}: cannot be evaluated on these rows"):
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    wanted = batch.ids.roll(-1, dims=1)[batch.targets]
    chosen = logits[batch.targets].float()
    owner = batch.targets.nonzero()[:, 0]

    def by_row(of_targets: Tensor) -> Tensor:
        return of_targets.new_zeros(batch.ids.shape[0]).index_add_(0, owner, of_targets)

    loss = by_row(torch.nn.functional.cross_entropy(chosen, wanted, reduction="none"))
    if not match:
        return loss, None
    highest, likeliest = chosen.max(-1)
    missed = (likeliest != wanted).float().masked_fill(~highest.isfinite(), math.nan)
    summed = by_row(missed)
    return loss, (summed == 0).float().masked_fill(summed.isnan(), math.nan)


# `generate` fills what is left None from the checkpoint's generation_config.json: a chat model's
# repetition penalty would make it another answer than one forward's.
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
    """What the pattern finds last: its first group if it has one, commas and spaces aside."""
    found = list(pattern.finditer(text))
    if not found:
        return None
    answer = found[-1].group(1) if pattern.groups else found[-1].group(0)
    return (answer or "").replace(",", "").strip()
