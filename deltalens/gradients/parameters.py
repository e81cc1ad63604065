"""A model's parameters: how they are called, which are meant, and what of them is here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deltalens.errors import DeltaLensError, fault_list
from deltalens.names import NameFilter, unwrap_name

__all__ = [
    "FLOATS",
    "choose_parameters",
    "inner_model",
    "local_part",
    "named_parameters",
    "to_strided",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The numbers that can be ranked by their bits."""


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A model's parameters, frozen or not, tied ones once, named as without any wrapper."""
    prefix = "module." if isinstance(model, nn.parallel.DistributedDataParallel) else ""
    for name, parameter in model.named_parameters():
        yield unwrap_name(name.removeprefix(prefix)), parameter


def choose_parameters(
    model: nn.Module, include: str | None, exclude: str | None, who: str
) -> NameFilter:
    """The parameters that two patterns leave; those that come later, too.

    Args:
        model: whose parameters are meant.
        include, exclude: regular expressions.
        who: chooses them, for messages.

    Raises:
        DeltaLensError: a pattern that is none, or no parameter is left (the nearest names are
            shown).
    """
    chosen, there = NameFilter(include, exclude), list(named_parameters(model))
    left = [(name, one) for name, one in there if name in chosen]
    if not left:
        raise DeltaLensError(chosen.explain_no_match([name for name, _ in there], "parameter"))
    if not any(one.requires_grad for _, one in left):
        warnings.warn(
            fault_list(
                f"{who}: what it is to watch is frozen, and will be taken in once it is trained:",
                [name for name, _ in left],
            ),
            stacklevel=4,
        )
    return chosen


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DDP's wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def to_strided(tensor: Tensor) -> Tensor:
    """A tensor of any layout as a strided one; itself, if it is one."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a parameter or gradient, detached."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
