"""A model's parameters: their names, which are selected, and this process's part of them."""

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
    "TRAINED_VALUES",
    "choose_parameters",
    "inner_model",
    "local_part",
    "named_parameters",
    "to_strided",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that can be ranked by their bits."""
TRAINED_VALUES = "sparse_values"
"""The parameter of a layer that holds the trained entries of its weight."""


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over a model's parameters under the names they have without wrappers.

    Args:
        model: the model; may be wrapped by DDP, FSDP or torch.compile.

    Returns:
        Pairs of name and parameter, frozen parameters included; a tied parameter comes once. Where
        chosen entries of a weight are trained (`SparseTuning`), these come under the weight's name,
        and the frozen weight does not.
    """
    prefix = "module." if isinstance(model, nn.parallel.DistributedDataParallel) else ""
    named = [
        (unwrap_name(name.removeprefix(prefix)), parameter)
        for name, parameter in model.named_parameters()
    ]
    weight_of = {
        name: name.removesuffix(TRAINED_VALUES) + "weight"
        for name, _ in named
        if name.rpartition(".")[2] == TRAINED_VALUES
    }
    replaced = set(weight_of.values())
    for name, parameter in named:
        if name not in replaced:
            yield weight_of.get(name, name), parameter


def choose_parameters(
    model: nn.Module, include: str | None, exclude: str | None, owner: str
) -> NameFilter:
    """Select parameters by two patterns, including parameters that are added later.

    Args:
        model: the model.
        include: a regular expression that names must match; None selects all.
        exclude: a regular expression that names must not match; None excludes none.
        owner: the object that selects, for messages.

    Returns:
        The filter over parameter names.

    Raises:
        DeltaLensError: a pattern is invalid or no parameter is selected; the message shows similar
            names.
    """
    names, parameters = NameFilter(include, exclude), list(named_parameters(model))
    selected = [(name, parameter) for name, parameter in parameters if name in names]
    if not selected:
        raise DeltaLensError(names.explain_no_match([name for name, _ in parameters], "parameter"))
    if not any(parameter.requires_grad for _, parameter in selected):
        warnings.warn(
            fault_list(
                f"{owner}: all selected parameters are frozen; they are watched from when they are "
                "unfrozen:",
                [name for name, _ in selected],
            ),
            stacklevel=4,
        )
    return names


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of torch.compile and DDP.

    Args:
        model: the model; wrapped or not.

    Returns:
        The innermost model.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def to_strided(tensor: Tensor) -> Tensor:
    """Convert a tensor of any layout to a strided one.

    Args:
        tensor: a strided or sparse tensor.

    Returns:
        The tensor itself if it is strided already; otherwise a dense copy.
    """
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a parameter or gradient, detached.

    Args:
        tensor: a tensor; sharded or not.

    Returns:
        The local shard, or the whole tensor if it is not sharded; shares memory with `tensor`.
    """
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
