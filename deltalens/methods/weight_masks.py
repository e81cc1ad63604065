"""Masks of weights: learned ones, and the random and L1 masks they are measured against.

A weight that a mask removes is exactly zero in the model that the masks are applied to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import parametrize

from deltalens.errors import DeltaLensError, fault_list
from deltalens.io.mask_file import MaskFile, StoredMask, read_masks, write_masks
from deltalens.methods.mask_layers import (
    MODULES,
    Blocks,
    Layer,
    choose_layers,
    linear_layers,
)
from deltalens.methods.mask_ratios import Ratios, describe_ratios, ratios_of
from deltalens.numerics.edit import zero_outside
from deltalens.numerics.hashing import name_key
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection import draw, keep_highest
from deltalens.numerics.workers import serial_map

__all__ = [
    "WeightMask",
    "WeightMasks",
    "apply_masks",
    "gathered",
    "l1_weight_mask",
    "random_weight_mask",
    "shard_like",
]

_WHOLE, _RUNS, _RUN = 1 << 15, 64, 512


@dataclass(frozen=True)
class WeightMask:
    """The mask of one layer's weight."""

    layer: Layer
    weight: Tensor
    """As it is without the mask; sharded or not."""
    kept: PackedMask
    """Of the whole flat weight: true where it is kept."""

    @property
    def ratio(self) -> float:
        """The share that is removed."""
        removed = self.kept.size - int(self.kept.count())
        return removed / self.kept.size if removed else 0.0


@dataclass(frozen=True)
class WeightMasks:
    """Masks of a model's linear layers, not applied yet."""

    layers: tuple[WeightMask, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    """How they came about; kept in the file."""

    def masks(self) -> dict[str, Tensor]:
        """Layer -> mask: bool, of the weight's shape, true where it is kept."""
        return {one.layer.name: one.kept.unpacked().view(one.weight.shape) for one in self.layers}

    @property
    def mask_ratio(self) -> float:
        """The share of all these layers' weights that is removed."""
        removed = sum(one.kept.size - int(one.kept.count()) for one in self.layers)
        return removed / max(1, sum(one.kept.size for one in self.layers))

    def mask_ratio_by_layer(self) -> dict[str, float]:
        """Layer -> share of its weights that is removed."""
        return {one.layer.name: one.ratio for one in self.layers}

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, one bit a weight (`io.mask_file`), with a
        fingerprint of the weights as they are before anything is removed. Of several processes the
        first writes.

        Raises:
            DeltaLensError: it cannot be written.
        """
        stored = [
            StoredMask(
                one.layer.name,
                tuple(one.weight.shape),
                _digest(one.weight),
                one.kept.bytes[: -(-one.kept.size // 8)].cpu().numpy(),
            )
            for one in self.layers
        ]
        if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
            write_masks(path, stored, self.about)

    def merge(self) -> None:
        """Make the removed weights exact zeros, in place."""
        for one in self.layers:
            _clear(one.weight.detach(), one.kept)


def apply_masks(model: nn.Module, path: str | Path) -> nn.Module:
    """Apply saved masks: the removed weights become exact zeros, in place.

    Args:
        model: the one that the masks were made for, as it was then; in any dtype that holds its
            weights exactly.
        path: of the file that `save` wrote.

    Returns:
        The model.

    Raises:
        CheckpointError: no file of masks.
        DeltaLensError: the masks are another model's; nothing was changed.
    """
    file = read_masks(path)
    layers = {layer.name: layer for layer in linear_layers(model)}
    _check_fit(path, file, model, layers)
    for one in file.masks:
        weight = layers[one.name].module.get_parameter("weight").detach()
        held = PackedMask(weight.numel())
        held.bytes[: one.bits.size] = torch.from_numpy(one.bits)
        _clear(weight, PackedMask(weight.numel(), held=held.bytes.to(weight.device)))
    return model


def _check_fit(
    path: str | Path, file: MaskFile, model: nn.Module, layers: Mapping[str, Layer]
) -> None:
    name = type(model).__name__
    faults = []
    for one in file.masks:
        layer = layers.get(one.name)
        if layer is None:
            faults.append(f"{one.name}: no linear layer of {name} is called so")
        elif parametrize.is_parametrized(layer.module):
            faults.append(f"{one.name}: is masked already; merge or detach first")
        elif (shape := tuple(layer.module.get_parameter("weight").shape)) != one.shape:
            faults.append(f"{one.name}: is {list(shape)} in {name}, {list(one.shape)} in the masks")
    if faults:
        raise DeltaLensError(fault_list(f"{path}: these masks do not fit {name}:", faults))
    digests = {
        one.name: _digest(layers[one.name].module.get_parameter("weight").detach())
        for one in file.masks
    }
    if differing := file.differing(digests):
        raise DeltaLensError(
            fault_list(
                f"{path}: these masks were made for other weights than {name} has (another model, "
                "or dtype, or already masked) in",
                differing,
            )
        )


def random_weight_mask(
    model: nn.Module,
    *,
    blocks: Blocks = "all",
    modules: Iterable[str] = MODULES,
    include: str | None = None,
    mask_ratio: Ratios = Fraction(1, 10),
    seed: int = 0,
) -> WeightMasks:
    """Masks that remove round(mask_ratio * n) random weights of each layer (MFT's Random Mask).

    Args:
        model, blocks, modules, include: as in `choose_layers`.
        mask_ratio: as in `ratios_of`.
        seed: whose randomness; of (seed, layer name) alone.

    Raises:
        DeltaLensError: bad arguments.
    """

    def kept_of(layer: Layer, weight: Tensor, removed: int) -> PackedMask:
        kept, stay = PackedMask(weight.numel(), weight.device), weight.numel() - removed
        if not removed:
            kept.fill()
        elif stay:
            name = layer.weight_name
            _, drawn = draw({name: weight.numel()}, stay, seed, serial_map, weight.device)
            kept.write(0, drawn[name])
        return kept

    layers = choose_layers(model, blocks, modules, include)
    return _untrained(layers, mask_ratio, kept_of, {"method": "random", "seed": seed})


def l1_weight_mask(
    model: nn.Module,
    *,
    blocks: Blocks = "all",
    modules: Iterable[str] = MODULES,
    include: str | None = None,
    mask_ratio: Ratios = Fraction(1, 10),
) -> WeightMasks:
    """Masks that remove the round(mask_ratio * n) smallest |weights| of each layer (MFT's L1 Mask).

    Args:
        model, blocks, modules, include: as in `choose_layers`.
        mask_ratio: as in `ratios_of`.

    Raises:
        DeltaLensError: bad arguments, or a NaN among the weights.
    """

    def kept_of(layer: Layer, weight: Tensor, removed: int) -> PackedMask:
        name = layer.weight_name
        return keep_highest(weight.reshape(-1), removed, name_key(0, name), name=name).mask

    layers = choose_layers(model, blocks, modules, include)
    return _untrained(layers, mask_ratio, kept_of, {"method": "l1"})


def _untrained(
    layers: list[Layer],
    mask_ratio: Ratios,
    kept_of: Any,
    about: dict[str, Any],
) -> WeightMasks:
    ratios = ratios_of(mask_ratio, layers)
    made = []
    for layer in layers:
        weight = layer.module.get_parameter("weight").detach()
        removed = round(ratios[layer.name] * layer.entries)
        made.append(WeightMask(layer, weight, kept_of(layer, weight, removed)))
    about["mask_ratio"] = describe_ratios(mask_ratio, layers)
    return WeightMasks(tuple(made), about)


def _clear(weight: Tensor, kept: PackedMask) -> None:
    """Make zero, in place, what is not kept."""
    if isinstance(weight, DTensor):
        mask = shard_like(kept.unpacked().view(weight.shape), weight)
        weight.to_local().masked_fill_(~mask, 0)
    elif weight.is_contiguous():
        zero_outside(weight.view(-1), kept)
    else:
        weight.masked_fill_(~kept.unpacked().view(weight.shape), 0)


def shard_like(tensor: Tensor, like: DTensor) -> Tensor:
    """What this process has of a tensor that all have whole, sharded as another one."""
    # Every rank has the same: nothing is sent.
    sharded = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return sharded.to_local()


def gathered(tensor: Tensor) -> Tensor:
    """A tensor, detached and gathered from all processes if it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _digest(weight: Tensor) -> str:
    """A hash of a weight's shape and numbers, whatever its dtype: of all up to 32,768, beyond that
    of 64 evenly spaced runs of 512."""
    flat = gathered(weight).reshape(-1)
    if flat.numel() > _WHOLE:
        step = (flat.numel() - _RUN) // (_RUNS - 1)
        flat = torch.cat([flat[place * step :][:_RUN] for place in range(_RUNS)])
    content = flat.double().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{list(weight.shape)}".encode() + content).hexdigest()
