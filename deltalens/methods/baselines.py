"""The baselines of Gradient-Mask Tuning: random masks, and half of the layers frozen."""

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
from deltalens.numerics.rates import show_rate
from deltalens.numerics.selection import draw
from deltalens.numerics.workers import map_balanced, serial_map, workers

__all__ = ["HalfFreeze", "RandomMask"]

Resample = Literal["step", "once"]
"""When a random mask is drawn: anew in every `step`, or `once`."""
Drawn = Literal["exact", "bernoulli"]
"""How a random mask is drawn: an `exact` number of entries, or each entry on its own
(`bernoulli`)."""


class RandomMask(StepMask):
    """Update random entries of every tensor, whatever their gradients (GMT's Random Mask baseline).

    The draw depends only on seed, step number and tensor name, not on the device, the sharding, or
    the step at which a training was resumed.

    Args:
        model: the model that is trained, as in `StepMask`.
        mask_ratio: the fraction of each tensor that is masked out, in [0, 1).
        optimizer: as in `StepMask`.
        apply_to: as in `StepMask`.
        include: as in `StepMask`.
        exclude: as in `StepMask`.
        seed: seed of the draw.
        resample: draw a new mask every `step`, or one mask `once`.
        draw: `exact` masks out round(mask_ratio * n) entries of n; `bernoulli` masks out each entry
            with that probability.
        first_step: number of the first step, if a training is resumed.

    Raises:
        DeltaLensError: an argument is invalid; raised before anything is hooked.

    Example:
        >>> import torch
        >>> from deltalens import RandomMask
        >>> model = torch.nn.Linear(10, 10, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with RandomMask(model, mask_ratio=0.8) as mask:
        ...     model(torch.ones(1, 10)).sum().backward()
        ...     optimizer.step()
        >>> int(model.weight.grad.count_nonzero())  # 20 of 100 entries were updated
        20
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
        for argument, value, choices in (
            ("resample", resample, get_args(Resample)),
            ("draw", draw, get_args(Drawn)),
        ):
            if value not in choices:
                raise DeltaLensError(f"{argument}={value!r}: choose one of {', '.join(choices)}")
        self._ratio, self._seed = check_mask_ratio(mask_ratio), seed
        self._resample, self._exact, self._first_step = resample, draw == "exact", first_step

    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Set every entry that was not drawn to zero.

        Args:
            step: the optimizer step.
            gradients: the gradients of the step that are masked.
            kept: parameter name -> mask in which the drawn entries are marked.
        """
        number = step.number + self._first_step if self._resample == "step" else 0

        def mask_one(gradient: Gradient) -> None:
            drawn = _local_shard(gradient, self._draw(gradient, f"{gradient.name}#{number}"))
            mask = PackedMask(gradient.local.numel(), gradient.local.device)
            mask.write(0, drawn)
            zero_outside(gradient.local, mask)
            kept[gradient.name].include(mask)

        if not self._ratio:
            for gradient in gradients:
                kept[gradient.name].fill()
            return
        with workers(gradients[0].local.device) as mapper:
            map_balanced(mapper, mask_one, gradients, lambda gradient: gradient.local.numel())

    def _settings(self) -> dict[str, object]:
        ratio = show_rate(self._ratio)
        return {"mask_ratio": ratio, "seed": self._seed, "apply_to": self.apply_to}

    def _draw(self, gradient: Gradient, name: str) -> Tensor:
        """The mask of the whole tensor: bool, 1-D."""
        device = gradient.local.device
        if not self._exact:
            return _bernoulli(gradient.entries, 1 - self._ratio, name_key(self._seed, name), device)
        count = gradient.entries - round(self._ratio * gradient.entries)
        if count in (0, gradient.entries):
            return torch.full((gradient.entries,), bool(count), device=device)
        _, masks = draw({name: gradient.entries}, count, self._seed, serial_map, device)
        return masks[name]


def _bernoulli(entries: int, share: Fraction, key: int, device: torch.device) -> Tensor:
    drawn = torch.empty(entries, dtype=torch.bool, device=device)
    bound, start = int(share * (1 << 64)) - (1 << 63), 0
    for hashes in hashed_range(0, entries, key, device):
        torch.lt(hashes, min(bound, (1 << 63) - 1), out=drawn[start : start + hashes.numel()])
        start += hashes.numel()
    return drawn


def _local_shard(gradient: Gradient, mask: Tensor) -> Tensor:
    """This process's shard of a mask of the whole tensor."""
    grad = gradient.parameter.grad
    if not isinstance(grad, DTensor):
        return mask
    # Every rank has drawn the same mask, so nothing is sent.
    sharded = distribute_tensor(
        mask.view(grad.shape), grad.device_mesh, grad.placements, src_data_rank=None
    )
    return sharded.to_local().reshape(-1)


class HalfFreeze(StepMask):
    """Freeze half of the layers of every block, drawn once (HFT at category level; GMT's Table 2).

    In each transformer block, half of the attention projections, half of the feed-forward matrices
    and half of the norms are frozen, with their biases. Of three feed-forward matrices, one is
    frozen in one half of the blocks and two in the other half. Embeddings, the head and everything
    else outside the blocks are trained. Frozen parameters stay bit-identical. Parameters that
    require no gradient when the object is made get a draw of their own, which applies if they are
    unfrozen later.

    Args:
        model: the model that is trained, as in `StepMask`.
        optimizer: as in `StepMask`.
        include: freeze only parameters whose name matches this regular expression.
        exclude: never freeze parameters whose name matches this regular expression.
        seed: seed of the draw.

    Raises:
        DeltaLensError: an argument is invalid, raised before anything is hooked; or, in a step, a
            block has a parameter that did not exist when the half was drawn.

    Example:
        >>> import torch
        >>> from deltalens import HalfFreeze
        >>> block = {"q_proj": torch.nn.Linear(4, 4), "o_proj": torch.nn.Linear(4, 4)}
        >>> model = torch.nn.Sequential(torch.nn.ModuleDict(block))
        >>> freeze = HalfFreeze(model, seed=1)
        >>> sorted(freeze.frozen)  # half of the attention projections of block 0
        ['0.o_proj.bias', '0.o_proj.weight']
    """

    masks_entries: ClassVar[bool] = False

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
        candidates = [
            (name, parameter) for name, parameter in named_parameters(model) if name in self._names
        ]
        dims = {name: parameter.dim() for name, parameter in candidates}
        self._considered = dims.keys()
        self.frozen: set[str] = set()
        """Names of the frozen parameters."""
        for trained in (True, False):
            names = [name for name, parameter in candidates if parameter.requires_grad == trained]
            if any(map(in_block, names)) or not any(map(in_block, dims)):
                self.frozen |= frozen_half(names, dims, seed)

    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Remove the gradients of frozen parameters, so that optimizers skip them.

        Args:
            step: the optimizer step.
            gradients: the gradients of the step.
            kept: parameter name -> mask; those of trained parameters are filled.

        Raises:
            DeltaLensError: a block has a parameter that did not exist when the half was drawn.
        """
        if unknown := [
            gradient.name
            for gradient in gradients
            if in_block(gradient.name) and gradient.name not in self._considered
        ]:
            raise DeltaLensError(
                fault_list(
                    "these parameters were added after HalfFreeze drew the half to freeze: make it "
                    "once the model has all its parameters, or leave them out with exclude",
                    unknown,
                )
            )
        for gradient in gradients:
            if gradient.name in self.frozen:
                gradient.parameter.grad = None
            else:
                kept[gradient.name].fill()

    def _settings(self) -> dict[str, object]:
        return {"frozen": f"{len(self.frozen)} parameters"}


def frozen_half(names: Sequence[str], dims: Mapping[str, int], seed: int) -> set[str]:
    """Draw the parameters that `HalfFreeze` freezes.

    Args:
        names: names of the parameters that may be frozen.
        dims: parameter name -> number of dimensions.
        seed: seed of the draw.

    Returns:
        Names of the parameters to freeze.

    Raises:
        DeltaLensError: no parameter belongs to a block.
    """
    blocks: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in names:
        if in_block(name):
            block = block_of(name)
            layer = name.rpartition(".")[0]
            kinds = blocks.setdefault(block, {"attention": {}, "mlp": {}, "norm": {}})
            layers_of_kind = kinds.get(kind_of(layer), kinds["mlp"])
            layers_of_kind.setdefault(layer, []).append(name)
    if not blocks:
        raise DeltaLensError("HalfFreeze found no transformer blocks in the parameter names")
    rng = random.Random(seed)
    blocks_rounded_up = set(rng.sample(sorted(blocks), len(blocks) // 2))
    frozen: set[str] = set()
    for block, kinds in sorted(blocks.items()):
        for kind, layers in kinds.items():
            half = len(layers) / 2
            count = int(half + 0.5) if kind == "mlp" and block in blocks_rounded_up else int(half)
            for layer in rng.sample(sorted(layers), count):
                frozen.update(layers[layer])
    return frozen
