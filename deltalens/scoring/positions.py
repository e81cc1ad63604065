"""How long a sequence a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["longest_input"]

_TABLES = ("position_embeddings", "embed_positions")


def longest_input(model: nn.Module) -> int | None:
    """How many tokens a model takes; None if its configuration does not say.

    RoBERTa and its relatives count positions from the padding token's number on: of a table of 514
    positions they use 512.
    """
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        positions = getattr(text, name, None)
        if isinstance(positions, int) and positions > 0:
            # ProphetNet's stream of predictions stands one position ahead of the text.
            ahead = 1 if hasattr(text, "ngram") else 0
            return min([positions, *(usable - ahead for usable in _behind_padding(model))])
    return None


def _behind_padding(model: nn.Module) -> Iterator[int]:
    """Of each table of positions that begins behind the padding token's number: what is left."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] in _TABLES and isinstance(padding, int):
            yield int(module.weight.shape[0]) - padding - 1
