"""The demo's training loop and its one measure: plain torch, as little as will do.

A trainer would do the same, more slowly: at this size its bookkeeping costs more than the model.
Shape letters: B rows, T tokens of the longest row, N tokens that count in the loss, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from deltalens.demo.tasks import Row
from deltalens.errors import DeltaLensError

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""

_WARMUP_SHARE = 0.03
_MAX_GRADIENT_NORM = 1.0
_SECONDS_BETWEEN_REPORTS = 0.5


class Batch(NamedTuple):
    """Right-padded rows, and which of their tokens the model must predict."""

    tokens_BT: Tensor
    is_target_BT: Tensor


class Trained(NamedTuple):
    """What a training leaves beside the weights."""

    seconds: float
    """Wall time."""
    loss: float
    """Mean over the last tenth of the steps, in nats a token."""


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Batch:
    """Turn rows into tensors; the targets are the completion's tokens and the EOS after them.

    Right padding needs no attention mask: under causal attention nothing real looks at it.
    """
    prompts = tokenizer([row.prompt for row in rows])["input_ids"]
    answers = tokenizer([row.completion for row in rows], add_special_tokens=False)["input_ids"]
    lengths = [
        len(prompt) + len(answer) + 1 for prompt, answer in zip(prompts, answers, strict=True)
    ]
    if max(lengths) > tokenizer.model_max_length:
        longest = rows[lengths.index(max(lengths))]
        raise DeltaLensError(
            f"{longest} takes {max(lengths)} tokens, but the model has "
            f"{tokenizer.model_max_length} positions; raise the recipe's positions"
        )
    tokens_BT = torch.full((len(rows), max(lengths)), tokenizer.pad_token_id)
    is_target_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        row = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        tokens_BT[index, : len(row)] = row
        is_target_BT[index, len(prompt) : len(row)] = True
    return Batch(tokens_BT, is_target_BT)


def predict(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (N, vocabulary) at the places before each target, and the targets (N,).

    Only these places go through the output layer.
    """
    hidden_BTD = model.model(batch.tokens_BT[:, :-1], use_cache=False).last_hidden_state
    is_target_BT = batch.is_target_BT[:, 1:]
    return model.lm_head(hidden_BTD[is_target_BT]), batch.tokens_BT[:, 1:][is_target_BT]


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine to 0."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Iterator[Row],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    progress: Progress,
) -> Trained:
    """Train all weights in place on fresh rows, one pass.

    The weights afterwards depend on the weights before and the rows alone: there is no dropout,
    so no random number is drawn. Raises DeltaLensError if the loss stops being finite.
    """
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )
    losses = []
    report = _throttled(progress)
    report(0, steps)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * learning_rate_share(step, steps)
        logits_NV, target_N = predict(model, encode(list(islice(rows, batch_size)), tokenizer))
        loss = nn.functional.cross_entropy(logits_NV, target_N)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DeltaLensError(
                f"the loss is {losses[-1]} at step {step + 1} of {steps}; "
                f"lower the recipe's learning rate of {learning_rate:g}"
            )
        report(step + 1, steps)
    model.eval()
    last = losses[-math.ceil(steps / 10) :]
    return Trained(time.perf_counter() - started, sum(last) / len(last))


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]
) -> float:
    """Share of rows that greedy decoding would answer exactly, from one forward.

    Fed the answer, every argmax must be the answer's next token: up to the first mistake greedy
    decoding sees the same tokens, and after it the row is lost.
    """
    batch = encode(rows, tokenizer)
    logits_NV, target_N = predict(model, batch)
    wrong_BT = torch.zeros_like(batch.is_target_BT)
    wrong_BT[batch.is_target_BT] = logits_NV.argmax(dim=-1) != target_N
    return 1 - int(wrong_BT.any(dim=1).sum()) / len(rows)


def _throttled(progress: Progress) -> Progress:
    """Pass on the first and last call, and of the others two a second."""
    reported_at = -math.inf

    def report(done: int, total: int) -> None:
        nonlocal reported_at
        now = time.monotonic()
        if done == total or now - reported_at >= _SECONDS_BETWEEN_REPORTS:
            reported_at = now
            progress(done, total)

    return report
