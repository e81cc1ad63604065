"""The memory of a model's tensors, also of those that accelerate offloads between forward passes.

An offloaded parameter is on the meta device, and a hook of its module brings the values for each
forward pass from a map of weights: on the CPU, or from the disk. What is written into that map is
what the next forward pass computes with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError
from deltalens.io.folders import check_space
from deltalens.scoring.placement import hooks_of, offload_folder

__all__ = ["live_tensors"]

_Place = tuple[Any, str]
"""A map of weights, and a name in it."""


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """List a model's parameters and buffers with the memory that its forward passes read.

    Weights on the disk are first copied into a temporary folder of the model, from where its
    forward passes then read them: neither the checkpoint nor the caller's own offload folder is
    ever written to.

    Args:
        model: on one device, or spread over several by accelerate.

    Returns:
        Name in the state dict -> tensor: the parameter or buffer itself; of an offloaded one a
        tensor on the CPU, or one that is mapped to a file.

    Raises:
        DeltaLensError: a tensor has no memory, or the disk has no room for the copies.
    """
    live: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    away = [name for name, tensor in live.items() if tensor.device.type == "meta"]
    if not away:
        return live
    places = dict(_places(model))
    if lost := [name for name in away if name not in places]:
        raise DeltaLensError(
            f"{type(model).__name__}: {lost[0]!r} is on the meta device, and no hook of accelerate "
            "says where its values are"
        )
    on_disk = {name: places[name] for name in away if _is_on_disk(*places[name])}
    # Tied weights have one copy, as they have one memory where nothing is offloaded.
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    first = {name: tied[name] if tied.get(name) in on_disk else name for name in on_disk}
    if on_disk:
        folder = offload_folder(model)
        _check_space(folder, (live[name] for name in on_disk if first[name] == name))
        _copy(on_disk, first, folder)
    found = {name: _memory(*places[name]) for name in away if first.get(name, name) == name}
    return {**live, **{name: found[first.get(name, name)] for name in away}}


def _places(model: nn.Module) -> Iterator[tuple[str, _Place]]:
    """Where the hooks of accelerate read offloaded tensors: name -> place."""
    for prefix, module in model.named_modules():
        for hook in hooks_of(module):
            weights = getattr(hook, "weights_map", None)
            if weights is None or not getattr(hook, "offload", False):
                continue
            how = {"recurse": bool(hook.place_submodules), "remove_duplicate": False}
            for name, _ in (*module.named_parameters(**how), *module.named_buffers(**how)):
                yield (f"{prefix}.{name}" if prefix else name), _inside(weights, name)


def _inside(weights: Any, name: str) -> _Place:
    """The place behind maps that only put a prefix before the name."""
    while hasattr(weights, "prefix") and hasattr(weights, "dataset"):
        weights, name = weights.dataset, f"{weights.prefix}{name}"
    return weights, name


def _is_on_disk(weights: Any, name: str) -> bool:
    return name in getattr(weights, "index", ()) and name not in weights.state_dict


def _check_space(folder: Path, weights: Iterable[Tensor]) -> None:
    """Refuse a disk without room: writing to a mapped file would end the process."""
    needed = sum(weight.numel() * weight.element_size() for weight in weights)
    held = sum(file.stat().st_size for file in folder.iterdir())
    try:
        check_space(folder, needed - held)
    except DeltaLensError as error:
        raise DeltaLensError(
            f"{error} (set TMPDIR: weights on the disk are edited in a copy there)"
        ) from error


def _copy(places: Mapping[str, _Place], first: Mapping[str, str], folder: Path) -> None:
    """Copy weights into a folder from which their loaders read them from now on; those that are
    there already stay.

    Args:
        places: name -> place.
        first: name -> that of the weight that it is tied to, whose file it shares; or its own.
        folder: where to.
    """
    from accelerate.utils.offload import offload_weight

    for loader, key in (places[name] for name in places if first[name] == name):
        if not (folder / f"{key}.dat").exists():
            # Not into the loader's own index: that still says where the others are.
            loader.index[key] = offload_weight(loader[key], key, folder, {})[key]
    for name in (name for name in places if first[name] != name):
        (loader, key), (origin, original) = places[name], places[first[name]]
        if not (folder / f"{key}.dat").exists():
            os.link(folder / f"{original}.dat", folder / f"{key}.dat")
            loader.index[key] = dict(origin.index[original])
    for loader, _ in places.values():
        loader.save_folder = folder


def _memory(weights: Any, name: str) -> Tensor:
    if not _is_on_disk(weights, name):
        tensor: Tensor = weights[name]
        return tensor
    about: Mapping[str, Any] = weights.index[name]
    shape, dtype = tuple(about["shape"]), getattr(torch, about["dtype"])
    stored = {"bfloat16": "int16"}.get(about["dtype"], about["dtype"])
    file = np.memmap(Path(weights.save_folder, f"{name}.dat"), stored, "r+", shape=shape or (1,))
    return torch.from_numpy(file).view(dtype).view(shape)
