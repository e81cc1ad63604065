"""The longest sequence that a model accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["longest_input"]

_TABLES = ("position_embeddings", "embed_positions")


def longest_input(model: nn.Module) -> int | None:
    """Determine the longest input of a model.

    RoBERTa and its relatives count positions starting behind the padding token's id: of a table of
    514 positions, they use 512.

    Args:
        model: the model.

    Returns:
        A number of tokens; None if the configuration does not say.
    """
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        positions = getattr(text, name, None)
        if isinstance(positions, int) and positions > 0:
            # ProphetNet's prediction stream is one position ahead of the text.
            ahead = 1 if hasattr(text, "ngram") else 0
            return min([positions, *(usable - ahead for usable in _usable_positions(model))])
    return None


def _usable_positions(model: nn.Module) -> Iterator[int]:
    """The number of positions in each table that starts behind the padding token's id."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] in _TABLES and isinstance(padding, int):
            yield int(module.weight.shape[0]) - padding - 1
