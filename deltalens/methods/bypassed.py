"""Layers whose weights a model reads without calling the layer."""

from __future__ import annotations

from torch import nn

__all__ = ["behind_a_kernel", "is_bypassed"]

_STATE, _BEHIND_A_KERNEL = "A_log", ("x_proj", "dt_proj", "out_proj")
"""A state-space mixer has such a parameter; its fused kernels read the weights of these layers
without calling them, so that an adapter there would do nothing."""


def behind_a_kernel(model: nn.Module, name: str) -> bool:
    """Whether fused kernels of a state-space mixer may read a layer's weight.

    Args:
        model: the model.
        name: of the layer.

    Returns:
        True even where the kernels are not installed.
    """
    owner, _, leaf = name.rpartition(".")
    return hasattr(model.get_submodule(owner), _STATE) and leaf in _BEHIND_A_KERNEL


def is_bypassed(model: nn.Module, name: str) -> bool:
    """Whether what a layer computes may be computed without its class: by a fused kernel, by
    `nn.MultiheadAttention`, or by a forward of its own (as accelerate's hooks give it one).

    Args:
        model: the model.
        name: of the layer.

    Returns:
        True if a change of the layer's class may have no effect.
    """
    owner = model.get_submodule(name.rpartition(".")[0])
    return (
        isinstance(owner, nn.MultiheadAttention)
        or "forward" in vars(model.get_submodule(name))
        or behind_a_kernel(model, name)
    )
