"""What Gradient-Mask Tuning is measured against: random masks, and half of the layers frozen."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from deltalens.errors import DeltaLensError, fault_list
from deltalens.gradients import Gradient, GradientStep, named_parameters
from deltalens.methods.gmt import Ratio, check_mask_ratio
from deltalens.methods.masking import StepMask
from deltalens.names import block_of, in_block, kind_of
from deltalens.numerics.edit import zero_outside
from deltalens.numerics.hashing import hashed_range, name_key
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection import draw
from deltalens.numerics.workers import map_balanced, serial_map, workers

__all__ = ["HalfFreeze", "RandomMask"]

Resample = Literal["step", "once"]
Drawn = Literal["exact", "bernoulli"]


class RandomMask(StepMask):
    """Random entries of every tensor are updated in a step, whatever their gradients (GMT's Random
    Mask).

    The draw depends on (seed, step, tensor name) alone: not on the device, the sharding, or on
    where a training was resumed.

    Args:
        model, optimizer, include, exclude, apply_to: as in `StepMask`.
        mask_ratio: the fraction of each tensor that is masked out, in [0, 1).
        seed: whose randomness.
        resample: a fresh mask each `step`, or drawn `once`.
        draw: `exact`, round(mask_ratio * n) entries of n are masked out; or `bernoulli`, each with
            that probability.
        first_step: the number of the first step, where a training goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        mask_ratio: Ratio = 0.2,
        *,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        apply_to: str = "gradient",
        include: str | None = None,
        exclude: str | None = None,
        seed: int = 0,
        resample: str = "step",
        draw: str = "exact",
        first_step: int = 0,
    ) -> None:
        super().__init__(
            model, optimizer=optimizer, apply_to=apply_to, include=include, exclude=exclude
        )
        for what, given, known in (
            ("resample", resample, get_args(Resample)),
            ("draw", draw, get_args(Drawn)),
        ):
            if given not in known:
                raise DeltaLensError(f"{what}={given!r}: choose one of {', '.join(known)}")
        self._ratio, self._seed = check_mask_ratio(mask_ratio), seed
        self._resample, self._exact, self._first_step = resample, draw == "exact", first_step

    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Zero what was not drawn."""
        number = step.number + self._first_step if self._resample == "step" else 0

        def thin(one: Gradient) -> None:
            drawn = _local_part(one, self._drawn(one, f"{one.name}#{number}"))
            mask = PackedMask(one.local.numel(), one.local.device)
            mask.write(0, drawn)
            zero_outside(one.local, mask)
            kept[one.name].include(mask)

        if not self._ratio:
            for one in gradients:
                kept[one.name].fill()
            return
        with workers(gradients[0].local.device) as mapper:
            map_balanced(mapper, thin, gradients, lambda one: one.local.numel())

    def _drawn(self, one: Gradient, name: str) -> Tensor:
        """The mask of the whole tensor: bool, 1-D."""
        device = one.local.device
        if not self._exact:
            return _bernoulli(one.entries, 1 - self._ratio, name_key(self._seed, name), device)
        count = one.entries - round(self._ratio * one.entries)
        if count in (0, one.entries):
            return torch.full((one.entries,), bool(count), device=device)
        _, masks = draw({name: one.entries}, count, self._seed, serial_map, device)
        return masks[name]


def _bernoulli(entries: int, share: Fraction, key: int, device: torch.device) -> Tensor:
    drawn = torch.empty(entries, dtype=torch.bool, device=device)
    below, at = int(share * (1 << 64)) - (1 << 63), 0
    for hashes in hashed_range(0, entries, key, device):
        torch.lt(hashes, min(below, (1 << 63) - 1), out=drawn[at : at + hashes.numel()])
        at += hashes.numel()
    return drawn


def _local_part(one: Gradient, whole: Tensor) -> Tensor:
    """What this process has of a mask of the whole tensor."""
    grad = one.parameter.grad
    if not isinstance(grad, DTensor):
        return whole
    # Every rank has drawn the same: nothing is sent.
    sharded = distribute_tensor(
        whole.view(grad.shape), grad.device_mesh, grad.placements, src_data_rank=None
    )
    return sharded.to_local().reshape(-1)


class HalfFreeze(StepMask):
    """Half of every block's layers are frozen, drawn once (HFT at category level; GMT's Table 2).

    Of each transformer block, half of the attention projections, half of the feed-forward matrices
    (of three, one in one half of the blocks and two in the other) and half of the norms are frozen,
    with their biases; embeddings, head and whatever lies outside the blocks are trained. Frozen
    parameters keep their bits. Of what is not trained when it is made, half is drawn apart, and
    frozen should it be unfrozen later.

    Args:
        model, optimizer, include, exclude: as in `StepMask`; what these leave out is trained.
        seed: whose draw.

    Raises:
        DeltaLensError: bad arguments, before anything is hooked; in a step: a block has a parameter
            that was not there when the half was drawn.
    """

    thins: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        include: str | None = None,
        exclude: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer=optimizer, include=include, exclude=exclude)
        there = [(name, one) for name, one in named_parameters(model) if name in self._names]
        dims = {name: one.dim() for name, one in there}
        self._drawn = dims.keys()
        self.frozen: set[str] = set()
        """Names of the frozen parameters."""
        for trained in (True, False):
            some = [name for name, one in there if one.requires_grad == trained]
            if any(map(in_block, some)) or not any(map(in_block, dims)):
                self.frozen |= frozen_half(some, dims, seed)

    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Take the gradients of what is frozen away: optimizers pass over such parameters."""
        if new := [
            one.name for one in gradients if in_block(one.name) and one.name not in self._drawn
        ]:
            raise DeltaLensError(
                fault_list(
                    "these were not there when HalfFreeze drew its half: make it after the model "
                    "has all its parameters, or leave them out with exclude=",
                    new,
                )
            )
        for one in gradients:
            if one.name in self.frozen:
                one.parameter.grad = None
            else:
                kept[one.name].fill()


def frozen_half(names: Sequence[str], dims: Mapping[str, int], seed: int) -> set[str]:
    """Which parameters `HalfFreeze` freezes.

    Args:
        names: of those it may freeze.
        dims: name -> number of dimensions.
        seed: whose draw.

    Raises:
        DeltaLensError: there are no blocks to draw from.
    """
    blocks: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in names:
        if in_block(name):
            block = block_of(name)
            layer = name.rpartition(".")[0]
            kinds = blocks.setdefault(block, {"attention": {}, "mlp": {}, "norm": {}})
            same = kinds.get(kind_of(layer), kinds["mlp"])
            same.setdefault(layer, []).append(name)
    if not blocks:
        raise DeltaLensError("HalfFreeze finds no transformer blocks among the parameters' names")
    random_ = random.Random(seed)
    more = set(random_.sample(sorted(blocks), len(blocks) // 2))
    frozen: set[str] = set()
    for block, kinds in sorted(blocks.items()):
        for kind, layers in kinds.items():
            half = len(layers) / 2
            count = int(half + 0.5) if kind == "mlp" and block in more else int(half)
            for layer in random_.sample(sorted(layers), count):
                frozen.update(layers[layer])
    return frozen
