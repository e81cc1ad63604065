"""Batches of the rows of a training, for what looks at data before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from deltalens.numerics.hashing import name_key

__all__ = ["CalibrationBatches"]


class CalibrationBatches:
    """The rows in batches, in another order each time.

    Args:
        rows: as the trainer takes them.
        collate: makes a batch of some rows.
        size: rows in a batch.
        seed: decides the orders.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], Mapping[str, Any]],
        size: int,
        seed: int,
    ) -> None:
        self._rows, self._collate, self._seed = rows, collate, seed
        self.size = size
        """Rows in a batch."""

    def __call__(self, number: int) -> Iterator[Mapping[str, Any]]:
        """Go through the rows once.

        Args:
            number: of this pass, from 0.

        Returns:
            The batches.
        """
        key = name_key(self._seed, f"calibration {number}") % (1 << 63)
        generator = torch.Generator().manual_seed(key)
        order = torch.randperm(len(self._rows), generator=generator).tolist()
        for start in range(0, len(order), self.size):
            yield self._collate([self._rows[index] for index in order[start : start + self.size]])
