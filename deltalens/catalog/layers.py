"""The groups in which summaries and figures show the layers of a model, and the order of layers."""

from __future__ import annotations

from collections.abc import Mapping

from deltalens.names import Kind, block_of, is_block, kind_of

__all__ = ["LAYER_GROUPS", "block_rank", "layer_group", "tensor_rank"]

_LABELS: Mapping[Kind, str] = {
    "embedding": "embeddings",
    "attention": "attention",
    "mlp": "MLP",
    "expert": "MLP",
    "norm": "norms",
    "head": "output head",
    "other": "other",
}
LAYER_GROUPS = tuple(dict.fromkeys(_LABELS.values()))
"""The groups, in the order in which they are shown."""


def layer_group(name: str) -> str:
    """Find the group that a tensor is shown in.

    Args:
        name: a parameter's or layer's name.

    Returns:
        One of `LAYER_GROUPS`: experts are shown with the MLPs.

    Example:
        >>> layer_group("model.layers.3.self_attn.q_proj.weight")
        'attention'
    """
    return _LABELS[kind_of(name)]


def block_rank(block: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key of layers: embeddings, blocks by number, the rest, the output head.

    Args:
        block: a result of `block_of`.

    Returns:
        The key.

    Example:
        >>> sorted(["lm_head.weight", "h.10", "h.2", "wte.weight"], key=block_rank)
        ['wte.weight', 'h.2', 'h.10', 'lm_head.weight']
    """
    ranks = {"embeddings": 0, "output head": 3}
    rank = 1 if is_block(block) else ranks.get(layer_group(block), 2)
    return rank, [
        # int takes neither superscripts nor thousands of digits.
        (int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part)
        for part in block.split(".")
    ]


def tensor_rank(name: str) -> tuple[tuple[int, list[tuple[int, str]]], list[tuple[int, str]]]:
    """Sort key of tensors: by layer as `block_rank` sorts them, and by name inside a layer.

    Args:
        name: of a tensor.

    Returns:
        The key.
    """
    return block_rank(block_of(name)), block_rank(name)[1]
