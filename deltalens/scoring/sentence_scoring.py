"""Measuring how well a model predicts the labels of sentences: accuracy and F1 of classes, the
correlation of scores, and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError
from deltalens.io.records import Measurement
from deltalens.scoring.finite import are_numbers
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile
from deltalens.scoring.sentences import (
    Example,
    check_sentences,
    encode_sentences,
    labels_of,
    padding_in,
    sentence_logits,
)
from deltalens.scoring.statistics import correlation, f1_score, mean

__all__ = ["SentenceScoring"]


class SentenceScoring:
    """A file of labeled sentences that was tokenized once, to evaluate models on it.

    Args:
        data: the rows.
        model: the model that the study is about, with a head over sequences.
        tokenizer: its tokenizer; None if it has none.
        batch_tokens: tokens per batch, padding included.

    Attributes:
        name: the data's name.
        left_out: number of rows that are left out: none, as long ones are cut.
        deciding_metric: the metric by which the best checkpoint of a training is chosen: the lowest
            value wins.

    Raises:
        DeltaLensError: the model has no head over sequences, or no tokenizer; or rows have labels
            that it does not have.
    """

    def __init__(self, data: DataFile, model: nn.Module, tokenizer: Any, batch_tokens: int) -> None:
        labels = labels_of(model)
        if labels is None:
            raise DeltaLensError(
                f"{data.path}: rows with labels need a model with a head for classification or "
                f"regression, and {type(model).__name__} has none; `deltalens train` gives it one"
            )
        if tokenizer is None:
            raise DeltaLensError(
                "rows with labels need a tokenizer, but there is none in the fine-tune's folder"
            )
        self.name, self.left_out, self._labels = data.name, 0, labels
        self.deciding_metric = "cross_entropy" if labels.names else "squared_error"
        self._tokenizer = tokenizer
        kind = torch.int64 if labels.names else torch.float64
        self._actual = torch.tensor(labels.of(data), dtype=kind)
        self._examples = encode_sentences(data, tokenizer, longest_input(model), model)
        # Without a padding token, a head that reads the last token takes one row at a time.
        self._batches = _batches(
            self._examples, batch_tokens if padding_in(model) is not None else 1
        )

    def check(self, model: nn.Module, where: str | Path) -> None:
        """Refuse a model that computes NaN or infinite logits on its longest row.

        Args:
            model: the model that the study is about.
            where: its folder, for the message.

        Raises:
            DeltaLensError: names the dtype, and says what to do.
        """
        check_sentences(model, self._tokenizer, self._examples[self._batches[0][0]], where)

    @torch.inference_mode()
    def measure(self, model: nn.Module) -> dict[str, Measurement]:
        """Evaluate a model.

        Args:
            model: a model with the head of the one that the study is about.

        Returns:
            Of classes, `accuracy` (fraction of rows), `f1` (of class 1, or the mean over more than
            two classes) and `cross_entropy` (nats per row); of scores, `pearson` and
            `squared_error` (mean over rows). With standard errors over rows; NaN if the model's
            logits are not finite.

        Raises:
            DeltaLensError: the model has another head or none, or fails on the rows.
        """
        if labels_of(model) != self._labels:
            raise DeltaLensError(
                f"{type(model).__name__} has no head for the labels of {self.name}"
            )
        logits = torch.cat(
            [
                sentence_logits(model, self._tokenizer, [self._examples[row] for row in rows])
                for rows in self._batches
            ]
        )
        actual = self._actual[torch.tensor([row for rows in self._batches for row in rows])]
        if self._labels.names:
            predicted = logits.argmax(-1)
            found = {
                "accuracy": mean((predicted == actual).double()),
                "f1": f1_score(predicted, actual, len(self._labels.names)),
            }
        else:
            found = {"pearson": correlation(logits[:, 0], actual)}
        found[self.deciding_metric] = mean(self._losses(logits, actual))
        if bool(are_numbers(logits).all()):
            return found
        return {name: Measurement(math.nan, math.nan, each.n) for name, each in found.items()}

    def loss_parts(self) -> list[Callable[[nn.Module], Tensor]]:
        """Split the loss into one part per batch, each a scalar with a graph.

        Returns:
            Functions of the model whose values add up to the mean loss per row.
        """

        def part(rows: list[int]) -> Callable[[nn.Module], Tensor]:
            examples = [self._examples[row] for row in rows]

            def loss(model: nn.Module) -> Tensor:
                losses = self._losses(
                    sentence_logits(model, self._tokenizer, examples), self._actual[rows]
                )
                return losses.sum() / len(self._examples)

            return loss

        return [part(rows) for rows in self._batches]

    def _losses(self, logits: Tensor, actual: Tensor) -> Tensor:
        """Cross-entropy or squared error of each row: (B,)."""
        if self._labels.names:
            return nn.functional.cross_entropy(logits, actual, reduction="none")
        return (logits[:, 0].double() - actual).pow(2)


def _batches(examples: Sequence[Example], tokens: int) -> list[list[int]]:
    """Indices of rows of similar length, longest first, with at most so many tokens, padding
    included."""
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    grouped, start = [], 0
    while start < len(order):
        size = max(1, tokens // len(examples[order[start]]["input_ids"]))
        grouped.append(order[start : start + size])
        start += size
    return grouped
