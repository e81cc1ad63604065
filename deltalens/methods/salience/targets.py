"""Choose the linear layers that a sparse tuning adapts, and whose weights are ranked."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from deltalens.errors import DeltaLensError, fault_list, similar_names
from deltalens.methods.mask_layers import (
    Layer,
    linear_layers,
    refuse_unfit,
    refuse_wrapped,
    warn_of_fused,
)
from deltalens.names import kind_of

__all__ = ["Targets", "choose_targets"]

Targets = str | Sequence[str]
"""`attention`, `linear`, or names of layers, as a sequence or separated by commas."""


def choose_targets(
    model: nn.Module, targets: Targets = "attention", *, shapes_only: bool = False
) -> list[Layer]:
    """Choose the linear layers whose weights are ranked.

    Args:
        model: the model; not wrapped, not sharded, not quantized.
        targets: `attention`: the linear layers of the blocks that belong to the attention, by their
            names; `linear`: all linear layers of the blocks, never a head; or names, each a layer's
            full name or the end of it after a dot, as peft matches `target_modules`. A head is
            chosen only by its name.
        shapes_only: whether only shapes are wanted: weights may be on the meta device, or be unfit.

    Returns:
        The chosen layers in the order of the model.

    Raises:
        DeltaLensError: a target matches no linear layer, or a layer cannot be adapted.
    """
    refuse_wrapped(model, "adapt")
    layers = linear_layers(model)
    if targets in ("attention", "linear"):
        chosen = [
            layer
            for layer in layers
            if layer.block is not None
            and kind_of(layer.name) != "head"
            and (targets == "linear" or layer.kind == "attention")
        ]
        if not chosen:
            raise _no_match(model, f"targets={targets!r} chooses", layers)
        if targets == "linear":
            blocks = {layer.block for layer in chosen if layer.block is not None}
            warn_of_fused(model, blocks, "adapt")
    else:
        chosen = _named(model, layers, _names_in(targets))
    if not shapes_only:
        refuse_unfit(model, chosen, "adapt")
    return chosen


def _names_in(targets: Targets) -> list[str]:
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise DeltaLensError(
            f"targets={targets!r}: give attention, linear, or names of linear layers"
        )
    return [name.strip() for name in names]


def _named(model: nn.Module, layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    matched = {
        name: {layer.name for layer in layers if f".{layer.name}".endswith(f".{name}")}
        for name in names
    }
    if unmatched := [name for name, found in matched.items() if not found]:
        raise _no_match(model, f"targets {', '.join(unmatched)}: the names match", layers)
    chosen = set().union(*matched.values())
    return [layer for layer in layers if layer.name in chosen]


def _no_match(model: nn.Module, what: str, layers: Sequence[Layer]) -> DeltaLensError:
    """The error that lists the linear layers there are, once per projection."""
    endings = {layer.name.rpartition(".")[2]: layer.name for layer in layers}
    shown = similar_names(what, list(endings.values()), 20, 0.0) or [*endings.values()][:20]
    return DeltaLensError(
        fault_list(
            f"{what} no linear layer of {type(model).__name__}; name layers by the ends of their "
            "names; there are:",
            shown or ["none"],
        )
    )
