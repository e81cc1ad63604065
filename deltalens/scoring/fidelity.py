"""How far a model is from the fine-tune, without data: on texts the fine-tune wrote itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, errors_from
from deltalens.io.records import Measurement
from deltalens.scoring.file_scoring import can_generate
from deltalens.scoring.finite import are_numbers, no_numbers
from deltalens.scoring.positions import longest_input
from deltalens.scoring.statistics import ratio

__all__ = ["KEPT", "Fidelity", "sample_texts"]

KEPT = 512
"""Log-probabilities of the fine-tune kept per position."""

_MEMORY = 1 << 29
"""Bytes that the logits of a batch, and what is made of them, may take."""


def sample_texts(
    model: nn.Module,
    sequences: int,
    new_tokens: int,
    seed: int,
    advance: Callable[[int], None] = lambda steps: None,
    stops: Collection[int] = (),
) -> list[list[int]]:
    """Texts to compare on: sampled from the model itself at temperature 1, from the
    beginning-of-sequence token or else an ordinary token drawn at random, until the end-of-sequence
    token, another stop, or `new_tokens`. A model that cannot generate gets random tokens instead.

    Args:
        model: the fine-tune.
        sequences: how many texts.
        new_tokens: sampled per text; fewer where the model has fewer positions.
        seed: of all draws; the global generators are left alone.
        advance: told of every batch: how many texts are done.
        stops: tokens at which generation stops (`ends_of`).
    """
    config: Any = model.config
    text_config = config.get_text_config()
    vocabulary = int(text_config.vocab_size)
    positions = longest_input(model)
    new_tokens = min(new_tokens, positions - 1) if positions else new_tokens
    generator = torch.Generator().manual_seed(seed)
    ordinary = _ordinary(text_config, vocabulary)
    places = torch.randint(len(ordinary), (sequences, new_tokens + 1), generator=generator)
    drawn = ordinary[places]
    if not can_generate(model):
        advance(sequences)
        return [[int(token) for token in row] for row in drawn[:, : max(2, new_tokens)]]
    bos = getattr(text_config, "bos_token_id", None)
    first = drawn[:, 0]
    if isinstance(bos, int) and 0 <= bos < vocabulary:
        first = torch.full((sequences,), bos)
    ends = getattr(text_config, "eos_token_id", None)
    stops = {*stops, *(ends if isinstance(ends, list) else [ends])}
    texts: list[list[int]] = []
    size = max(1, min(sequences, _MEMORY // (16 * vocabulary)))
    for start in range(0, sequences, size):
        texts += _continue(model, first[start : start + size], new_tokens, stops, generator)
        advance(min(size, sequences - start))
    return texts


def _ordinary(config: Any, vocabulary: int) -> Tensor:
    """The tokens that neither begin, nor end, nor pad a text."""
    special: set[Any] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name, None)
        special |= set(ids) if isinstance(ids, list) else {ids}
    kept = [token for token in range(vocabulary) if token not in special]
    return torch.tensor(kept or list(range(vocabulary)))


@torch.inference_mode()
def _continue(
    model: nn.Module, first: Tensor, steps: int, stops: set[Any], generator: torch.Generator
) -> list[list[int]]:
    device = next(model.parameters()).device
    texts = [[int(token)] for token in first]
    going = [True] * len(texts)
    ids, cache = first.unsqueeze(1).to(device), None
    for _ in range(steps):
        with errors_from(
            "transformers", f"{type(model).__name__}: no texts can be sampled from it"
        ):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = getattr(out, "past_key_values", None)
        if not bool(are_numbers(out.logits[:, -1]).all()):
            raise no_numbers(model, _folder(model))
        chances = out.logits[:, -1].float().softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator)
        for place, token in enumerate(drawn[:, 0].tolist()):
            if going[place]:
                texts[place].append(token)
                going[place] = token not in stops
        if not any(going):
            break
        drawn = drawn.to(device)
        # A model without such a cache (a recurrent one) reads the text anew.
        ids = drawn if cache is not None else torch.cat([ids, drawn], dim=1)
    return texts


@dataclass(frozen=True)
class _Reference:
    """What the fine-tune says at the positions of one batch (P positions, K kept classes)."""

    ids: Tensor
    """(B, L) input ids."""
    mask: Tensor
    """(B, L)."""
    compared: Tensor
    """(B, L): which positions are compared."""
    classes: Tensor
    """(P, K): the K most likely next tokens."""
    top: Tensor
    """(P,): the most likely one. In bf16 several often tie: taken as `measure` takes it."""
    logs: Tensor
    """(P, K + 1): their log-probabilities, and that of all the rest together, fp32."""
    owner: Tensor
    """(P,): which text a position belongs to."""


class Fidelity:
    """KL(ft || model) per token and top-1 agreement, on fixed texts, against the fine-tune.

    The reference keeps, per position, the fine-tune's 512 largest log-probabilities and the mass of
    the rest. KL over those 513 classes is a lower bound of the true one (data processing), exact
    where the vocabulary is no larger, and exactly 0 for the fine-tune itself.

    Args:
        model: the fine-tune; its answers are kept.
        texts: token ids, at least two each.
        advance: told of every batch: how many texts are done.

    Raises:
        DeltaLensError: the model gives no logits over a vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: list[list[int]],
        advance: Callable[[int], None] = lambda steps: None,
    ) -> None:
        config: Any = model.config
        self._encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        self._causal = can_generate(model)
        text_config = config.get_text_config()
        self._texts = len(texts)
        self._slice = max(1, _MEMORY // (16 * int(text_config.vocab_size)))
        # A classifier that reads its answer off the last token finds it by the padding token.
        alone = not self._causal and getattr(text_config, "pad_token_id", None) is None
        self._batches: list[_Reference] = []
        with torch.inference_mode():
            for start, batch in _padded(texts, 1 if alone else self._slice):
                self._batches.append(self._reference(model, batch, start))
                advance(len(batch))

    def _reference(self, model: nn.Module, texts: list[list[int]], start: int) -> _Reference:
        device = next(model.parameters()).device
        length = max(len(text) for text in texts)
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, text in enumerate(texts):
            ids[place, : len(text)] = torch.tensor(text)
            mask[place, : len(text)] = 1
        # What follows the last token is not compared: the text ended there.
        compared = mask.bool()
        if self._causal:
            compared = compared & mask.roll(-1, dims=1).bool()
            compared[:, -1] = False
        ids, mask, compared = ids.to(device), mask.to(device), compared.to(device)
        logits = self._logits(model, ids, mask)
        owner = compared.nonzero()[:, 0] + start
        if logits.dim() == 2:
            compared, owner = compared[:, 0], torch.arange(len(texts), device=device) + start
        kept = min(KEPT, logits.shape[-1])
        classes, top, logs = [], [], []
        for piece in logits[compared].split(self._slice):
            if not bool(are_numbers(piece).all()):
                raise no_numbers(model, _folder(model))
            best = piece.float().topk(kept, dim=-1).indices
            classes.append(best.to(torch.int32))
            top.append(piece.float().max(-1).indices)
            logs.append(_classes(piece, best))
        return _Reference(
            ids, mask, compared, torch.cat(classes), torch.cat(top), torch.cat(logs), owner
        )

    def _logits(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self._encoder_decoder:
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        if self._causal or self._encoder_decoder:
            inputs["use_cache"] = False
        with errors_from("transformers", f"{type(model).__name__}: cannot be evaluated on texts"):
            logits = getattr(model(**inputs), "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() not in (2, 3):
            raise DeltaLensError(
                f"{type(model).__name__} gives no logits to compare; give a metric of your own to "
                "deltalens.drop_study(metric=...)"
            )
        return logits

    @torch.inference_mode()
    def measure(self, model: nn.Module) -> dict[str, Measurement]:
        """`top1_agreement` (share of positions) and `kl` (nats per token); standard errors over
        texts. NaN where the model computes no numbers."""
        divergence = torch.zeros(self._texts, dtype=torch.float64)
        agreed, count = torch.zeros_like(divergence), torch.zeros_like(divergence)
        for reference in self._batches:
            logits = self._logits(model, reference.ids, reference.mask)[reference.compared]
            pieces = logits.split(self._slice)
            kept = zip(
                pieces,
                reference.classes.split(self._slice),
                reference.top.split(self._slice),
                reference.logs.split(self._slice),
                reference.owner.split(self._slice),
                strict=True,
            )
            for piece, classes, top, logs, owner in kept:
                owner = owner.cpu()
                found = _classes(piece, classes.long())
                divergence.index_add_(0, owner, _divergence(logs, found).cpu())
                highest, likeliest = piece.float().max(-1)
                same = (likeliest == top).double().masked_fill(~highest.isfinite(), math.nan)
                agreed.index_add_(0, owner, same.cpu())
                count.index_add_(0, owner, torch.ones(len(owner), dtype=torch.float64))
        seen = count > 0
        return {
            "top1_agreement": ratio(agreed[seen], count[seen]),
            "kl": ratio(divergence[seen], count[seen]),
        }


def _folder(model: nn.Module) -> str:
    config: Any = model.config
    return str(config.name_or_path) or type(model).__name__


def _padded(texts: list[list[int]], positions: int) -> list[tuple[int, list[list[int]]]]:
    """Texts in order, in batches of at most so many positions: (place of the first, texts)."""
    made: list[tuple[int, list[list[int]]]] = []
    start = 0
    while start < len(texts):
        stop = start + 1
        while stop < len(texts) and (stop + 1 - start) * max(
            len(text) for text in texts[start : stop + 1]
        ) <= min(positions, 1 << 12):
            stop += 1
        made.append((start, texts[start:stop]))
        start = stop
    return made


def _classes(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-probabilities of these classes and, last, of all the others together: fp32."""
    logits = logits.float()
    logs = logits.gather(-1, classes) - logits.logsumexp(-1, keepdim=True)
    if classes.shape[-1] == logits.shape[-1]:
        rest = torch.full_like(logs[:, :1], -math.inf)
    else:
        others = logits.scatter(-1, classes, -math.inf)
        rest = others.logsumexp(-1, keepdim=True) - logits.logsumexp(-1, keepdim=True)
    return torch.cat([logs, rest], dim=-1)


def _divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL per position, fp64; a class without mass in the reference counts nothing."""
    reference, other = reference.double(), other.double()
    terms = reference.exp() * (reference - other)
    return terms.masked_fill(reference == -math.inf, 0.0).sum(-1)
