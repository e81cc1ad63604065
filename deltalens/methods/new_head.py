"""The new head of a model: parameters that its checkpoint does not have. They train whole, whatever
a method does to the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["exclude_new_head", "mark_new_head", "new_head", "train_new_head"]

_NAMES = "new_head"


def mark_new_head(model: nn.Module, names: Sequence[str]) -> None:
    """Say which parameters of a model are new.

    Args:
        model: the model.
        names: of the parameters.
    """
    setattr(model, _NAMES, tuple(names))


def new_head(model: nn.Module) -> tuple[str, ...]:
    """Look up which parameters of a model are new.

    Args:
        model: a model; what wraps it has no mark.

    Returns:
        Names of parameters; () if none was marked.
    """
    names: tuple[str, ...] = getattr(model, _NAMES, ())
    return names


def exclude_new_head(model: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """Extend the options of a method that masks, so that it leaves a new head alone.

    Args:
        model: the model.
        options: of the method.

    Returns:
        The same options if there is no new head; otherwise `exclude` names it as well.
    """
    names = new_head(model)
    if not names:
        return dict(options)
    pattern = f"^(?:{'|'.join(map(re.escape, names))})$"
    given = options.get("exclude")
    return {**options, "exclude": pattern if given is None else f"(?:{given})|{pattern}"}


def train_new_head(model: nn.Module) -> None:
    """Let a new head train where a method has frozen the model.

    Args:
        model: the model; a parameter that a method has replaced stays as it is.
    """
    names = {*new_head(model)}
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
