"""What a sparse tuning refuses before it touches the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import distributed as dist
from torch import nn

from deltalens.errors import DeltaLensError, fault_list
from deltalens.methods.bypassed import is_bypassed
from deltalens.methods.mask_layers import Layer, linear_layers
from deltalens.methods.sparse.layers import is_adapted

__all__ = ["check_refresh", "refuse_adapted", "trainable_layers", "whole_parameters"]


def check_refresh(every: int | None, scope: str, masks: Any, batches: Any, ties: str) -> None:
    """Refuse masks that cannot be renewed.

    Args:
        every, scope, masks, batches, ties: as `SparseTuning` takes them.

    Raises:
        DeltaLensError: says why.
    """
    if every is None:
        return
    if type(every) is not int or every < 1:
        raise DeltaLensError(f"refresh_every={every!r}: a number of steps, or None")
    if masks is not None:
        raise DeltaLensError("refresh_every: masks that are given stay as they are")
    if batches is not None and not callable(batches):
        raise DeltaLensError(
            "refresh_every: each mask needs fresh batches: give a function from the number of the "
            "mask, from 0, to its batches"
        )
    parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if parallel and (scope, ties) != ("tensor", "hash"):
        raise DeltaLensError(
            f"refresh_every with scope={scope!r}, ties={ties!r} in {dist.get_world_size()} "
            "processes: DDP needs every layer to keep its number of entries; use scope='tensor' "
            "and ties='hash'"
        )


def refuse_adapted(model: nn.Module) -> None:
    """Refuse a model of which entries are trained already.

    Args:
        model: any model.

    Raises:
        DeltaLensError: names the layers.
    """
    if adapted := [layer.name for layer in linear_layers(model) if is_adapted(layer.module)]:
        raise DeltaLensError(
            fault_list(
                f"{type(model).__name__} is adapted already; call merge() or unmerge() of its "
                "SparseTuning first:",
                adapted,
            )
        )


def trainable_layers(
    model: nn.Module, layers: Sequence[Layer], notes: list[str] | None = None
) -> list[Layer]:
    """Leave out or refuse layers whose entries cannot be trained.

    Args:
        model: the model.
        layers: layers of it.
        notes: what is left out is said there; None: the layers were named, and are refused.

    Returns:
        The others.

    Raises:
        DeltaLensError: a layer was named, or none is left; or a weight is not contiguous.
    """
    bypassed = [layer.name for layer in layers if is_bypassed(model, layer.name)]
    left = [layer for layer in layers if layer.name not in bypassed]
    why = "the model may read their weights without calling the layers"
    if bypassed and (notes is None or not left):
        raise DeltaLensError(
            fault_list(f"entries of these cannot be trained, because {why}:", bypassed)
        )
    if bypassed and notes is not None:
        leaves = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in bypassed))
        notes.append(f"not adapted, because {why}: {leaves}")
    if scattered := [
        layer.name for layer in left if not layer.module.get_parameter("weight").is_contiguous()
    ]:
        raise DeltaLensError(
            fault_list(
                "these weights are not contiguous in memory (set weight.data = "
                "weight.data.contiguous()):",
                scattered,
            )
        )
    return left


def whole_parameters(
    model: nn.Module, names: Sequence[str], layers: Sequence[Layer]
) -> dict[str, nn.Parameter]:
    """The parameters that train whole beside chosen entries.

    Args:
        model: the model.
        names: of parameters or modules.
        layers: those whose entries are trained.

    Returns:
        The parameters, by name.

    Raises:
        DeltaLensError: a name matches nothing, or a weight whose entries are trained.
    """
    adapted = {layer.weight_name for layer in layers}
    found: dict[str, nn.Parameter] = {}
    missing = []
    for name in names:
        own = {
            key: parameter
            for key, parameter in model.named_parameters()
            if key == name or key.startswith(f"{name}.")
        }
        if not own or adapted & own.keys():
            missing.append(name)
        found |= own
    if missing:
        raise DeltaLensError(
            f"whole: {', '.join(missing)}: no such parameter or module, or its entries are trained"
        )
    return found
