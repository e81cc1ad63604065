"""The groups in which summaries and figures show the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping

from deltalens.names import Kind, kind_of

__all__ = ["LAYER_GROUPS", "layer_group"]

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
