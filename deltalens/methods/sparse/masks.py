"""Which entries are trained: ranked by a salience, or given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch import distributed as dist

from deltalens.errors import DeltaLensError, fault_list
from deltalens.methods.mask_layers import Layer
from deltalens.methods.salience.measuring import salience
from deltalens.methods.salience.targets import choose_targets
from deltalens.methods.sparse.adapter import layers_by_weight
from deltalens.methods.sparse.budget import Budget, Unit
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection import Ties, keep_top

__all__ = ["Masks", "Ranking", "check_masks", "counted", "mask_budget", "packed_mask"]

Masks = Mapping[str, Tensor]
"""Layer or weight name -> bool mask of the weight's shape, or flat indices."""


@dataclass(frozen=True)
class Ranking:
    """How entries are ranked, each time anew."""

    metric: str
    batches: Any
    steps: int
    expectation: Any
    ties: Any
    loss: Callable[[nn.Module, Any], Tensor] | None
    seed: int
    layers: Sequence[Layer]
    units: Sequence[Unit]
    """What is ranked together, and how many are chosen of each."""

    def __post_init__(self) -> None:
        if self.ties not in get_args(Ties):
            raise DeltaLensError(f"ties={self.ties!r}: choose one of {', '.join(get_args(Ties))}")

    def choose(self, model: nn.Module, number: int, notes: list[str]) -> dict[str, Tensor]:
        """Choose the entries with the highest salience.

        Args:
            model: the model as it is now.
            number: of this mask, from 0; decides the batches, and what `random` draws.
            notes: what a user should know is added.

        Returns:
            Weight name -> ascending flat indices, int64; in several processes those of the first.

        Raises:
            DeltaLensError: as `deltalens.salience`.
        """
        batches = self.batches
        if callable(batches):
            batches = batches(number)
        (found,) = salience(
            model,
            () if batches is None else batches,
            [self.metric],
            targets=[layer.name for layer in self.layers],
            steps=self.steps,
            expectation=self.expectation,
            loss=self.loss,
            seed=self.seed + number,
        ).values()
        notes += [note for note in found.notes if note not in notes]
        chosen: dict[str, Tensor] = {}
        for unit in self.units:
            scores = {name: found.scores[name].reshape(-1) for name in unit.weights}
            masks = keep_top(
                scores, unit.count, by_value=found.signed, seed=self.seed, ties=self.ties
            )
            for name, mask in masks.items():
                chosen[name] = mask.unpacked().nonzero().squeeze(1)
        return _of_first_process(chosen)


def _of_first_process(chosen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make all processes train what the first has chosen."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return chosen
    device = next(iter(chosen.values())).device
    sizes = torch.tensor([flat.numel() for flat in chosen.values()], device=device)
    dist.broadcast(sizes, 0)
    own = torch.cat(list(chosen.values()))
    flat = own if dist.get_rank() == 0 else own.new_empty(int(sizes.sum()))
    dist.broadcast(flat, 0)
    return dict(zip(chosen, flat.split(sizes.tolist()), strict=True))


def check_masks(
    model: nn.Module, masks: Masks, others: Iterable[Any]
) -> tuple[list[Layer], dict[str, Tensor]]:
    """Check masks that are given.

    Args:
        model: the model.
        masks: as in `SparseTuning`.
        others: what counts entries; must all be None.

    Returns:
        The layers in the order of the model, and weight name -> ascending flat indices, int64.

    Raises:
        DeltaLensError: a mask fits no linear layer, or chooses nothing.
    """
    if any(other is not None for other in others):
        raise DeltaLensError("masks: they say how many entries are trained; give no number")
    named = layers_by_weight(model)
    named |= {layer.name: layer for layer in named.values()}
    faults, chosen = [], {}
    for name, mask in masks.items():
        layer = named.get(name)
        if layer is None:
            faults.append(f"{name}: {type(model).__name__} has no linear layer of this name")
            continue
        shape = tuple(layer.module.get_parameter("weight").shape)
        if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or _are_indices(mask)):
            given = f"{mask.dtype} of {mask.dim()} dimensions" if isinstance(mask, Tensor) else ""
            faults.append(
                f"{name}: neither a bool mask nor flat indices: {given or type(mask).__name__}"
            )
            continue
        if mask.dtype == torch.bool and tuple(mask.shape) != shape:
            faults.append(f"{name}: a mask of shape {list(mask.shape)} for a weight {list(shape)}")
            continue
        flat = mask.reshape(-1).nonzero().squeeze(1) if mask.dtype == torch.bool else mask
        flat = flat.to(torch.int64).unique(sorted=True)
        if not flat.numel() or flat[0] < 0 or flat[-1] >= shape[0] * shape[1]:
            faults.append(
                f"{name}: chooses nothing, or beyond the weight's {shape[0] * shape[1]:,}"
            )
        chosen[layer.weight_name] = flat
    if faults or not chosen:
        raise DeltaLensError(fault_list("these masks cannot be used:", faults or ["there is none"]))
    layers = choose_targets(model, [layers_by_weight(model)[name].name for name in chosen])
    # A name may end another one's: only those that were given.
    return [layer for layer in layers if layer.weight_name in chosen], chosen


def _are_indices(mask: Tensor) -> bool:
    return mask.dim() == 1 and not (mask.is_floating_point() or mask.is_complex())


def counted(budget: Budget, chosen: Mapping[str, Tensor]) -> Budget:
    """Count what was chosen: with all ties kept, that may be more than was planned.

    Args:
        budget: the plan.
        chosen: weight name -> flat indices.

    Returns:
        The plan with the true counts.
    """
    units = [
        replace(unit, count=sum(chosen[name].numel() for name in unit.weights))
        for unit in budget.units
    ]
    return replace(budget, units=tuple(units))


def mask_budget(model: nn.Module, layers: Sequence[Layer], chosen: Mapping[str, Tensor]) -> Budget:
    """Count the entries of masks that are given.

    Args:
        model: the model.
        layers: the adapted layers.
        chosen: weight name -> flat indices.

    Returns:
        The budget, a unit for each weight.
    """
    units = [
        Unit(
            layer.weight_name,
            (layer.weight_name,),
            layer.entries,
            chosen[layer.weight_name].numel(),
        )
        for layer in layers
    ]
    return Budget(tuple(units), sum(parameter.numel() for parameter in model.parameters()))


def packed_mask(flat: Tensor, size: int) -> PackedMask:
    """Make a mask of flat indices.

    Args:
        flat: the indices, int64, (k,).
        size: entries of the weight.

    Returns:
        One bit per entry, true at the indices; on their device.
    """
    inside = torch.zeros(size, dtype=torch.bool, device=flat.device)
    inside[flat] = True
    mask = PackedMask(size, flat.device)
    mask.write(0, inside)
    return mask
