"""Measuring by how much a model prefers chosen to rejected answers, relative to a reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.io.records import Measurement
from deltalens.scoring.file_scoring import batch_positions, score
from deltalens.scoring.finite import check_model
from deltalens.scoring.placement import input_device
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile
from deltalens.scoring.statistics import mean
from deltalens.scoring.tokens import batches, encode_preferences, padding_of

__all__ = ["Preferences"]


class Preferences:
    """A file of preferences that was tokenized once, to evaluate models on it.

    An answer's reward is beta * (log p(answer) - log p_ref(answer)), summed over its tokens (DPO,
    Rafailov et al. 2023, arXiv 2305.18290). The metrics equal those of trl's `DPOTrainer.evaluate`.

    Args:
        data: the rows.
        reference: the reference model, with its current weights; it is not stored.
        tokenizer: the reference's tokenizer.
        batch_tokens: tokens per batch, padding included.
        beta: scale of the rewards.

    Attributes:
        name: the data's name.
        left_out: number of rows that are too long, or without a token to predict.

    Raises:
        DeltaLensError: no row fits the model, or the model fails on them.
    """

    deciding_metric = "dpo_loss"
    """The metric by which the best checkpoint of a training is chosen: the lowest value wins."""

    def __init__(
        self, data: DataFile, reference: nn.Module, tokenizer: Any, batch_tokens: int, beta: float
    ) -> None:
        config: Any = reference.config
        self.name, self._beta = data.name, beta
        pairs, self.left_out = encode_preferences(
            data, tokenizer, longest_input(reference), reference
        )
        self._count = len(pairs)
        self._sequences = [pair[answer] for answer in (0, 1) for pair in pairs.values()]
        positions = batch_positions(batch_tokens, config.get_text_config().vocab_size)
        self._batches = batches(self._sequences, positions, padding_of(tokenizer, reference))
        self._reference = self._log_ratios(reference)

    def check(self, model: nn.Module, where: str | Path) -> None:
        """Refuse a model that computes NaN or infinite logits on its longest row.

        Args:
            model: the model that the study is about.
            where: its folder, for the message.

        Raises:
            DeltaLensError: names the dtype, and says what to do.
        """
        longest = max(self._sequences, key=lambda sequence: len(sequence.ids))
        check_model(model, longest.ids, where)

    def measure(self, model: nn.Module) -> dict[str, Measurement]:
        """Evaluate a model.

        Args:
            model: a model with the reference's vocabulary.

        Returns:
            `preference_accuracy` (fraction of rows whose chosen answer has the greater reward; a
            tie does not count), `dpo_loss` (-log sigmoid of the margin, nats per preference) and
            `reward_margin` (reward of the chosen minus that of the rejected answer, nats), with
            standard errors over rows; NaN if the model's logits are not finite.

        Raises:
            DeltaLensError: the model fails on the rows.
        """
        margins = self._beta * (self._log_ratios(model) - self._reference)
        preferred = (margins > 0).double().masked_fill(margins.isnan(), math.nan)
        return {
            "preference_accuracy": mean(preferred),
            "dpo_loss": mean(-nn.functional.logsigmoid(margins)),
            "reward_margin": mean(margins),
        }

    @torch.inference_mode()
    def _log_ratios(self, model: nn.Module) -> Tensor:
        """log p(chosen) - log p(rejected) of every row: (rows,), fp64."""
        log_probabilities = torch.zeros(2 * self._count, dtype=torch.float64)
        device = input_device(model)
        for batch in self._batches:
            losses, _ = score(model, batch.to(device), match=False)
            log_probabilities[batch.rows] = -losses.double().cpu()
        chosen, rejected = log_probabilities.chunk(2)
        return chosen - rejected
