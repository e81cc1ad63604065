"""Measuring how far a model is from the fine-tune without data: on texts sampled from the
fine-tune itself."""

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
from deltalens.scoring.placement import input_device
from deltalens.scoring.positions import longest_input
from deltalens.scoring.statistics import ratio

__all__ = ["KEPT", "LOGITS_BYTES", "Fidelity", "sample_texts"]

KEPT = 512
"""Log-probabilities of the fine-tune that are stored per position."""

LOGITS_BYTES = 1 << 29
"""Bytes that the logits of a batch, and what is computed from them, may take."""


def sample_texts(
    model: nn.Module,
    sequences: int,
    new_tokens: int,
    seed: int,
    advance: Callable[[int], None] = lambda steps: None,
    stops: Collection[int] = (),
) -> list[list[int]]:
    """Sample texts on which models are compared.

    They are sampled from the model at temperature 1. A text starts with the beginning-of-sequence
    token or, if there is none, a random ordinary token. It ends with the end-of-sequence token,
    another stop, or after `new_tokens`. If the model cannot generate, all tokens are random.

    Args:
        model: the fine-tune.
        sequences: number of texts.
        new_tokens: tokens to sample per text; fewer if the model has fewer positions.
        seed: seed of all draws; global generators are not used.
        advance: called after every batch with its number of texts.
        stops: tokens at which generation stops (`ends_of`).

    Returns:
        Token ids of each text.

    Raises:
        DeltaLensError: the model fails, or computes NaN or infinite logits.
    """
    config: Any = model.config
    text_config = config.get_text_config()
    vocabulary = int(text_config.vocab_size)
    positions = longest_input(model)
    new_tokens = min(new_tokens, positions - 1) if positions else new_tokens
    generator = torch.Generator().manual_seed(seed)
    ordinary = _ordinary(text_config, vocabulary)
    indices = torch.randint(len(ordinary), (sequences, new_tokens + 1), generator=generator)
    drawn = ordinary[indices]
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
    size = max(1, min(sequences, LOGITS_BYTES // (16 * vocabulary)))
    for start in range(0, sequences, size):
        texts += _continue(model, first[start : start + size], new_tokens, stops, generator)
        advance(min(size, sequences - start))
    return texts


def _ordinary(config: Any, vocabulary: int) -> Tensor:
    """All tokens that do not begin, end or pad a text: (V',)."""
    special: set[Any] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name, None)
        special |= set(ids) if isinstance(ids, list) else {ids}
    ordinary = [token for token in range(vocabulary) if token not in special]
    return torch.tensor(ordinary or list(range(vocabulary)))


@torch.inference_mode()
def _continue(
    model: nn.Module, first: Tensor, steps: int, stops: set[Any], generator: torch.Generator
) -> list[list[int]]:
    device = input_device(model)
    texts = [[int(token)] for token in first]
    unfinished = [True] * len(texts)
    ids, cache = first.unsqueeze(1).to(device), None
    for _ in range(steps):
        with errors_from("transformers", f"{type(model).__name__}: cannot sample texts from it"):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = getattr(out, "past_key_values", None)
        if not bool(are_numbers(out.logits[:, -1]).all()):
            raise no_numbers(model, _folder(model))
        probabilities = out.logits[:, -1].float().softmax(-1).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        for row, token in enumerate(drawn[:, 0].tolist()):
            if unfinished[row]:
                texts[row].append(token)
                unfinished[row] = token not in stops
        if not any(unfinished):
            break
        drawn = drawn.to(device)
        # A model without such a cache (a recurrent one) reads the whole text again.
        ids = drawn if cache is not None else torch.cat([ids, drawn], dim=1)
    return texts


@dataclass(frozen=True)
class _Reference:
    """The fine-tune's predictions at the positions of one batch (P positions, K classes)."""

    ids: Tensor
    """(B, L) input ids."""
    mask: Tensor
    """(B, L) attention mask."""
    compared: Tensor
    """(B, L): which positions are compared."""
    classes: Tensor
    """(P, K): the K most likely next tokens."""
    top: Tensor
    """(P,): the most likely token. In bf16 several often tie; `measure` breaks ties alike."""
    logs: Tensor
    """(P, K + 1): log-probabilities of the classes, and of all other tokens together, fp32."""
    owner: Tensor
    """(P,): the text that a position belongs to."""


class Fidelity:
    """Compares models with the fine-tune on fixed texts: KL(ft || model) and top-1 agreement.

    For each position, the fine-tune's 512 largest log-probabilities are stored, and the probability
    of all other tokens together. The KL divergence over these 513 classes is a lower bound of the
    true one (data processing inequality). It is exact if the vocabulary has at most 512 tokens, and
    exactly 0 for the fine-tune itself.

    Args:
        model: the fine-tune; only its predictions are stored.
        texts: token ids of each text, at least two.
        advance: called after every batch with its number of texts.

    Raises:
        DeltaLensError: the model returns no logits over a vocabulary.
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
        self._slice = max(1, LOGITS_BYTES // (16 * int(text_config.vocab_size)))
        # A classifier on the last token finds that token by the padding: without a padding token,
        # each text is a batch.
        unpaddable = not self._causal and getattr(text_config, "pad_token_id", None) is None
        self._batches: list[_Reference] = []
        with torch.inference_mode():
            for start, batch in _batches(texts, 1 if unpaddable else self._slice):
                self._batches.append(self._reference(model, batch, start))
                advance(len(batch))

    def _reference(self, model: nn.Module, texts: list[list[int]], start: int) -> _Reference:
        device = input_device(model)
        length = max(len(text) for text in texts)
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        # The prediction after the last token is not compared: the text ended there.
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
            logs.append(_class_logs(piece, best))
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
                f"{type(model).__name__} returns no logits to compare; pass a metric of your own: "
                "deltalens.drop_study(metric=...)"
            )
        return logits

    @torch.inference_mode()
    def measure(self, model: nn.Module) -> dict[str, Measurement]:
        """Compare a model with the fine-tune.

        Args:
            model: a model with the fine-tune's vocabulary.

        Returns:
            `top1_agreement` (fraction of positions) and `kl` (nats per token), with standard errors
            over texts; NaN if the model's logits are not finite.

        Raises:
            DeltaLensError: the model fails, or returns no logits.
        """
        divergence = torch.zeros(self._texts, dtype=torch.float64)
        agreed, count = torch.zeros_like(divergence), torch.zeros_like(divergence)
        for reference in self._batches:
            logits = self._logits(model, reference.ids, reference.mask)[reference.compared]
            slices = zip(
                logits.split(self._slice),
                reference.classes.split(self._slice),
                reference.top.split(self._slice),
                reference.logs.split(self._slice),
                reference.owner.split(self._slice),
                strict=True,
            )
            for piece, classes, top, logs, owner in slices:
                owner = owner.cpu()
                model_logs = _class_logs(piece, classes.long())
                divergence.index_add_(0, owner, _divergence(logs, model_logs).cpu())
                highest, likeliest = piece.float().max(-1)
                same = (likeliest == top).double().masked_fill(~highest.isfinite(), math.nan)
                agreed.index_add_(0, owner, same.cpu())
                count.index_add_(0, owner, torch.ones(len(owner), dtype=torch.float64))
        compared = count > 0
        return {
            "top1_agreement": ratio(agreed[compared], count[compared]),
            "kl": ratio(divergence[compared], count[compared]),
        }


def _folder(model: nn.Module) -> str:
    config: Any = model.config
    return str(config.name_or_path) or type(model).__name__


def _batches(texts: list[list[int]], positions: int) -> list[tuple[int, list[list[int]]]]:
    """Texts in batches of at most `positions` tokens, with the index of each batch's first text."""
    batches: list[tuple[int, list[list[int]]]] = []
    start = 0
    while start < len(texts):
        stop = start + 1
        while stop < len(texts) and (stop + 1 - start) * max(
            len(text) for text in texts[start : stop + 1]
        ) <= min(positions, 1 << 12):
            stop += 1
        batches.append((start, texts[start:stop]))
        start = stop
    return batches


def _class_logs(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-probabilities of the classes (P, K) and, last, of all other tokens together: (P, K + 1),
    fp32."""
    logits = logits.float()
    logs = logits.gather(-1, classes) - logits.logsumexp(-1, keepdim=True)
    if classes.shape[-1] == logits.shape[-1]:
        rest = torch.full_like(logs[:, :1], -math.inf)
    else:
        others = logits.scatter(-1, classes, -math.inf)
        rest = others.logsumexp(-1, keepdim=True) - logits.logsumexp(-1, keepdim=True)
    return torch.cat([logs, rest], dim=-1)


def _divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL divergence per position, (P,), fp64. A class with probability 0 in the reference does not
    contribute."""
    reference, other = reference.double(), other.double()
    terms = reference.exp() * (reference - other)
    return terms.masked_fill(reference == -math.inf, 0.0).sum(-1)
