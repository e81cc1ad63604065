"""A model's parameters: how they are called, which are meant, and what of them is here."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deltalens.errors import DeltaLensError, nearest, several

__all__ = [
    "FLOATS",
    "ChosenNames",
    "dense",
    "every_parameter",
    "inner_model",
    "local_part",
    "parameter_names",
]

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The numbers that can be ranked by their bits."""


def every_parameter(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A model's parameters, frozen or not, tied ones once, named as without any wrapper."""
    prefix = "module." if isinstance(model, nn.parallel.DistributedDataParallel) else ""
    for name, parameter in model.named_parameters():
        yield _unwrapped(name.removeprefix(prefix)), parameter


@functools.lru_cache(maxsize=1 << 16)
def _unwrapped(name: str) -> str:
    return _WRAPPERS.sub("", name).removeprefix(".")


def parameter_names(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Those of `every_parameter` that are trained as things stand."""
    return ((name, one) for name, one in every_parameter(model) if one.requires_grad)


class ChosenNames:
    """The names that two patterns leave; those that come later, too.

    Args:
        model: whose parameters are meant.
        include, exclude: regular expressions.
        who: chooses them, for messages.

    Raises:
        DeltaLensError: a pattern that is none, or no parameter is left (the nearest names are
            shown).
    """

    def __init__(
        self, model: nn.Module, include: str | None, exclude: str | None, who: str
    ) -> None:
        try:
            self._want = re.compile(include) if include is not None else None
            self._refuse = re.compile(exclude) if exclude is not None else None
        except re.error as error:
            raise DeltaLensError(f"include/exclude: no regular expression: {error}") from error
        self._known: dict[str, bool] = {}
        left = [(name, one) for name, one in every_parameter(model) if name in self]
        if not left:
            names = [name for name, _ in every_parameter(model)]
            asked = include if include is not None else exclude
            near = nearest(str(asked), names, 5, 0.0)
            text = f"include={include!r}, exclude={exclude!r} leave no parameter; nearest:"
            raise DeltaLensError(several(text, near))
        if not any(one.requires_grad for _, one in left):
            warnings.warn(
                several(
                    f"{who}: what it is to watch is frozen, and will be taken in once it is "
                    "trained:",
                    [name for name, _ in left],
                ),
                stacklevel=4,
            )

    def __contains__(self, name: str) -> bool:
        found = self._known.get(name)
        if found is None:
            found = self._want is None or self._want.search(name) is not None
            found = found and not (self._refuse and self._refuse.search(name))
            self._known[name] = found
        return found


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DDP's wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def dense(tensor: Tensor) -> Tensor:
    """A tensor of any layout as a strided one; itself, if it is one."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a parameter or gradient, detached."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
