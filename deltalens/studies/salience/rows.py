"""Calibration batches from rows: shuffled by a seed, padded, with labels where a loss is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltalens.scoring.tokens import Tokens

__all__ = ["calibration_batches"]

_IGNORED = -100
"""The label of a token that has no loss."""


def calibration_batches(
    sequences: Sequence[Tokens], steps: int, size: int, seed: int, padding: int
) -> list[dict[str, Tensor]]:
    """Draw batches as a training would see them.

    Args:
        sequences: the tokenized rows.
        steps: the number of batches; fewer if there are too few rows.
        size: rows per batch.
        seed: of the order of the rows.
        padding: the token that fills up shorter rows.

    Returns:
        Batches of `input_ids`, `attention_mask` and `labels`: int64, (rows, longest row).
    """
    draw = torch.Generator().manual_seed(seed % (1 << 63))
    order = torch.randperm(len(sequences), generator=draw).tolist()[: steps * size]
    return [
        _batch([sequences[index] for index in order[start : start + size]], padding)
        for start in range(0, len(order), size)
    ]


def _batch(rows: Sequence[Tokens], padding: int) -> dict[str, Tensor]:
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, _IGNORED)
    for index, row in enumerate(rows):
        length = len(row.ids)
        ids[index, :length] = torch.tensor(row.ids)
        mask[index, :length] = 1
        labels[index, row.target : length] = ids[index, row.target : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
