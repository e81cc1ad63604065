"""Masks of weights: learned ones, and the random and L1 baselines.

A weight that a mask removes is exactly zero in the model to which the mask is applied.
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
    "weight_digest",
]

_WHOLE, _RUNS, _RUN = 1 << 15, 64, 512
"""Weights up to 32,768 entries are hashed whole; of larger ones, 64 evenly spaced runs of 512
are."""


@dataclass(frozen=True)
class WeightMask:
    """The mask of one layer's weight."""

    layer: Layer
    """The layer."""
    weight: Tensor
    """The unmasked weight; sharded or not."""
    kept: PackedMask
    """Mask of the whole flat weight, true where it is kept."""

    @property
    def ratio(self) -> float:
        """The fraction of the weight that is removed."""
        removed = self.kept.size - int(self.kept.count())
        return removed / self.kept.size if removed else 0.0


@dataclass(frozen=True)
class WeightMasks:
    """Masks of a model's linear layers that have not been applied yet."""

    layers: tuple[WeightMask, ...]
    """One mask per layer."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How the masks were made; stored in the file."""

    def __repr__(self) -> str:
        method = f", method {self.about['method']!r}" if "method" in self.about else ""
        return f"<WeightMasks of {len(self.layers)} layers{method}>"

    def masks(self) -> dict[str, Tensor]:
        """Return the masks as bool tensors.

        Returns:
            Layer name -> mask of the weight's shape, true where it is kept.
        """
        return {
            mask.layer.name: mask.kept.unpacked().view(mask.weight.shape) for mask in self.layers
        }

    @property
    def mask_ratio(self) -> float:
        """The fraction of all these layers' weights that is removed."""
        removed = sum(mask.kept.size - int(mask.kept.count()) for mask in self.layers)
        return removed / max(1, sum(mask.kept.size for mask in self.layers))

    def mask_ratio_by_layer(self) -> dict[str, float]:
        """Return the fraction removed from each layer.

        Returns:
            Layer name -> fraction of its weights that is removed.
        """
        return {mask.layer.name: mask.ratio for mask in self.layers}

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, one bit per weight (`io.mask_file`).

        The file also holds a fingerprint of the unmasked weights. In a distributed run the first
        process writes; under FSDP2 all processes must call this.

        Args:
            path: the file to write.

        Raises:
            DeltaLensError: the file cannot be written.
        """
        stored = [
            StoredMask(
                mask.layer.name,
                tuple(mask.weight.shape),
                weight_digest(mask.weight),
                mask.kept.bytes[: -(-mask.kept.size // 8)].cpu().numpy(),
            )
            for mask in self.layers
        ]
        if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
            write_masks(path, stored, self.about)

    def merge(self) -> None:
        """Set the removed weights to exact zeros, in place."""
        for mask in self.layers:
            _zero_removed(mask.weight.detach(), mask.kept)


def apply_masks(model: nn.Module, path: str | Path) -> nn.Module:
    """Apply saved masks to a model: the removed weights become exact zeros, in place.

    Args:
        model: the model that the masks were made for, with the weights it had then, in any dtype
            that holds them exactly.
        path: a file that `MaskTuning.save` or `WeightMasks.save` wrote.

    Returns:
        The same model, for chaining.

    Raises:
        CheckpointError: the file is not a mask file.
        DeltaLensError: the masks belong to another model; nothing was changed.

    Example:
        >>> import torch
        >>> from deltalens import MaskTuning, apply_masks
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False))
        >>> tuning = MaskTuning(model, mask_ratio=0.3)
        >>> tuning.save("masks.safetensors")
        >>> tuning.detach()  # the model has its own weights again
        >>> model = apply_masks(model, "masks.safetensors")
        >>> int((model[0].weight == 0).sum())  # 30 of 100 weights were removed
        30
    """
    file = read_masks(path)
    layers = {layer.name: layer for layer in linear_layers(model)}
    _check_fit(path, file, model, layers)
    for mask in file.masks:
        weight = layers[mask.name].module.get_parameter("weight").detach()
        packed = PackedMask(weight.numel())
        packed.bytes[: mask.bits.size] = torch.from_numpy(mask.bits)
        _zero_removed(weight, PackedMask(weight.numel(), data=packed.bytes.to(weight.device)))
    return model


def _check_fit(
    path: str | Path, file: MaskFile, model: nn.Module, layers: Mapping[str, Layer]
) -> None:
    name = type(model).__name__
    faults = []
    for mask in file.masks:
        layer = layers.get(mask.name)
        if layer is None:
            faults.append(f"{mask.name}: {name} has no linear layer of this name")
        elif parametrize.is_parametrized(layer.module):
            faults.append(f"{mask.name}: is masked already; call merge() or detach() first")
        elif (shape := tuple(layer.module.get_parameter("weight").shape)) != mask.shape:
            faults.append(
                f"{mask.name}: has shape {list(shape)} in {name} but {list(mask.shape)} in the file"
            )
    if faults:
        raise DeltaLensError(fault_list(f"{path}: these masks do not fit {name}:", faults))
    digests = {
        mask.name: weight_digest(layers[mask.name].module.get_parameter("weight").detach())
        for mask in file.masks
    }
    if differing := file.differing(digests):
        raise DeltaLensError(
            fault_list(
                f"{path}: the masks were made for other weights than this {name} has (another "
                "model, another dtype, or already masked weights) in",
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
    """Draw masks that remove round(mask_ratio * n) random weights of each layer (MFT's Random
    Mask).

    Args:
        model: the model, as in `choose_layers`.
        blocks: as in `choose_layers`.
        modules: as in `choose_layers`.
        include: as in `choose_layers`.
        mask_ratio: the fraction removed, as in `ratios_of`.
        seed: seed of the draw, which depends only on seed and layer name.

    Returns:
        The masks, not applied yet.

    Raises:
        DeltaLensError: an argument is invalid.
    """

    def kept_of(layer: Layer, weight: Tensor, removed: int) -> PackedMask:
        kept, kept_count = PackedMask(weight.numel(), weight.device), weight.numel() - removed
        if not removed:
            kept.fill()
        elif kept_count:
            name = layer.weight_name
            _, drawn = draw({name: weight.numel()}, kept_count, seed, serial_map, weight.device)
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
    """Make masks that remove the round(mask_ratio * n) smallest |weights| of each layer (MFT's L1
    Mask).

    Args:
        model: the model, as in `choose_layers`.
        blocks: as in `choose_layers`.
        modules: as in `choose_layers`.
        include: as in `choose_layers`.
        mask_ratio: the fraction removed, as in `ratios_of`.

    Returns:
        The masks, not applied yet.

    Raises:
        DeltaLensError: an argument is invalid, or a weight is NaN.
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
    masks = []
    for layer in layers:
        weight = layer.module.get_parameter("weight").detach()
        removed = round(ratios[layer.name] * layer.entries)
        masks.append(WeightMask(layer, weight, kept_of(layer, weight, removed)))
    about["mask_ratio"] = describe_ratios(mask_ratio, layers)
    return WeightMasks(tuple(masks), about)


def _zero_removed(weight: Tensor, kept: PackedMask) -> None:
    """Set what is not kept to zero, in place."""
    if isinstance(weight, DTensor):
        mask = shard_like(kept.unpacked().view(weight.shape), weight)
        weight.to_local().masked_fill_(~mask, 0)
    elif weight.is_contiguous():
        zero_outside(weight.view(-1), kept)
    else:
        weight.masked_fill_(~kept.unpacked().view(weight.shape), 0)


def shard_like(tensor: Tensor, like: DTensor) -> Tensor:
    """Return this process's shard of a tensor that every process holds whole.

    Args:
        tensor: the whole tensor, the same on all processes.
        like: a sharded tensor of the same shape.

    Returns:
        The local shard of `tensor`, placed as that of `like`.
    """
    # Every rank holds the same tensor, so nothing is sent.
    sharded = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return sharded.to_local()


def gathered(tensor: Tensor) -> Tensor:
    """Detach a tensor, and gather it from all processes if it is sharded.

    Args:
        tensor: any tensor; if it is sharded, all processes must call this.

    Returns:
        The whole tensor.
    """
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weight_digest(weight: Tensor) -> str:
    """Hash a weight's shape and numbers, independent of its dtype.

    Args:
        weight: the weight; if it is sharded, all processes must call this.

    Returns:
        64 hexadecimal digits, over all entries up to 32,768, else over 64 evenly spaced runs.
    """
    flat = gathered(weight).reshape(-1)
    if flat.numel() > _WHOLE:
        step = (flat.numel() - _RUN) // (_RUNS - 1)
        flat = torch.cat([flat[run * step :][:_RUN] for run in range(_RUNS)])
    content = flat.double().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{list(weight.shape)}".encode() + content).hexdigest()
