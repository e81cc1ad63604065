"""How a model prefers the chosen answers to the rejected ones, measured against a reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.io.records import Measurement
from deltalens.scoring.file_scoring import batch_positions, score
from deltalens.scoring.finite import check_model
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile
from deltalens.scoring.statistics import mean
from deltalens.scoring.tokens import batches, encode_preferences, padding_of

__all__ = ["Preferences"]


class Preferences:
    """Rows of preferences, tokenized once, to be measured on a model again and again.

    An answer's reward is beta * (log p - log p of the reference), over its tokens (DPO, Rafailov et
    al. 2023, 2305.18290). The numbers are those of trl's `DPOTrainer.evaluate`.

    Args:
        data: the rows.
        reference: the model that the rewards are taken against, as it is now; not kept.
        tokenizer: its own.
        batch_tokens: positions in a batch.
        beta: of the rewards.

    Raises:
        DeltaLensError: no row fits, or the model cannot be evaluated on them.
    """

    decides = "dpo_loss"
    """The metric by which the best moment of a training is chosen; low is good."""

    def __init__(
        self, data: DataFile, reference: nn.Module, tokenizer: Any, batch_tokens: int, beta: float
    ) -> None:
        config: Any = reference.config
        self.name, self._beta = data.name, beta
        pairs, self.left_out = encode_preferences(
            data, tokenizer, longest_input(reference), reference
        )
        self._count = len(pairs)
        self._sequences = [pair[place] for place in (0, 1) for pair in pairs.values()]
        positions = batch_positions(batch_tokens, config.get_text_config().vocab_size)
        self._batches = batches(self._sequences, positions, padding_of(tokenizer, reference))
        self._reference = self._log_ratios(reference)

    def check(self, model: nn.Module, where: str | Path) -> None:
        """Refuse a model that computes no numbers, by its longest row: as of `Scoring`."""
        check_model(model, max(self._sequences, key=lambda one: len(one.ids)).ids, where)

    def measure(self, model: nn.Module) -> dict[str, Measurement]:
        """`preference_accuracy` (share of rows whose chosen answer has the greater reward; a tie is
        none), `dpo_loss` (nats per preference: -log sigmoid of the margin) and `reward_margin`
        (chosen - rejected, nats); standard errors over rows. NaN where the model computes no
        numbers."""
        margins = self._beta * (self._log_ratios(model) - self._reference)
        preferred = (margins > 0).double().masked_fill(margins.isnan(), math.nan)
        return {
            "preference_accuracy": mean(preferred),
            "dpo_loss": mean(-nn.functional.logsigmoid(margins)),
            "reward_margin": mean(margins),
        }

    @torch.inference_mode()
    def _log_ratios(self, model: nn.Module) -> Tensor:
        """log p(chosen) - log p(rejected) of every row, in fp64: (B,)."""
        found = torch.zeros(2 * self._count, dtype=torch.float64)
        device = next(model.parameters()).device
        for batch in self._batches:
            losses, _ = score(model, batch.to(device), match=False)
            found[batch.rows] = -losses.double().cpu()
        chosen, rejected = found.chunk(2)
        return chosen - rejected
