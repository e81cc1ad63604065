"""The loss on a data file as a function that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from deltalens.scoring.file_scoring import Scoring, score
from deltalens.scoring.placement import input_device
from deltalens.scoring.sentence_scoring import SentenceScoring
from deltalens.scoring.tokens import Batch

__all__ = ["LossPart", "loss_parts"]

LossPart = Callable[[nn.Module], Tensor]
"""Maps a model to a part of its loss: a scalar with a graph. The parts add up to the loss."""


def loss_parts(scoring: Scoring | SentenceScoring) -> list[LossPart]:
    """Split the loss on a data file into one part per batch.

    Args:
        scoring: the tokenized file.

    Returns:
        Functions of the model whose values add up to the mean loss: in nats per target token, or of
        labels per row.
    """
    if isinstance(scoring, SentenceScoring):
        return scoring.loss_parts()
    total = sum(int(batch.targets.sum()) for batch in scoring.batches)

    def part(batch: Batch) -> LossPart:
        def loss(model: nn.Module) -> Tensor:
            moved = batch.to(input_device(model))
            return score(model, moved, match=False)[0].sum() / total

        return loss

    return [part(batch) for batch in scoring.batches]
