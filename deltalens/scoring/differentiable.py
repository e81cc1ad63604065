"""The loss of a data file as something that can be differentiated, twice."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from deltalens.scoring.file_scoring import Scoring, score
from deltalens.scoring.tokens import Batch

__all__ = ["LossPart", "loss_parts"]

LossPart = Callable[[nn.Module], Tensor]
"""From a model to a part of its loss, a scalar with a graph: the parts add up to the loss."""


def loss_parts(scoring: Scoring) -> list[LossPart]:
    """The loss per target token, a batch at a time: the tokens are those that `scoring` made."""
    total = sum(int(batch.targets.sum()) for batch in scoring._batches)

    def part(batch: Batch) -> LossPart:
        def loss(model: nn.Module) -> Tensor:
            moved = batch.to(next(model.parameters()).device)
            return score(model, moved, match=False)[0].sum() / total

        return loss

    return [part(batch) for batch in scoring._batches]
