"""What all methods that mask gradients have in common: one mask per optimizer step.

A method decides which entries stay; here is its life with the model, the coverage, and what it
takes to leave masked entries alone altogether (`apply_to="update"`).
"""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deltalens.errors import DeltaLensError
from deltalens.gradients import (
    Gradient,
    GradientStep,
    Subscriber,
    chosen_names,
    local_part,
    parameter_names,
)
from deltalens.numerics.magnitudes import restore_beside
from deltalens.numerics.overlap import PackedMask
from deltalens.numerics.scratch import Scratch

__all__ = ["APPLY_TO", "ApplyTo", "StepMask"]

ApplyTo = Literal["gradient", "update"]
APPLY_TO: tuple[ApplyTo, ...] = get_args(ApplyTo)


class StepMask(Subscriber):
    """Masks the gradient of every optimizer step: once per step, after accumulation and clipping.

    Args:
        model: what is trained; wrapped later or not.
        optimizer: only steps of this one, or these; by default every optimizer that steps
            parameters of the model.
        apply_to: `gradient`: masked entries of the gradient are zero, and the optimizer does with
            them what it does (momentum and weight decay may still move a weight). `update`:
            masked weights keep their bits in this step as well; takes a copy of the masked
            parameters and one bit per entry.
        include, exclude: regular expressions over parameter names; others train densely.

    Raises:
        DeltaLensError: bad arguments, before anything is hooked.
    """

    writes: ClassVar[bool] = True
    thins: ClassVar[bool] = True
    """Whether single entries are masked; else whole tensors."""

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        apply_to: str = "gradient",
        include: str | None = None,
        exclude: str | None = None,
    ) -> None:
        super().__init__(model, optimizer)
        if apply_to not in APPLY_TO:
            raise DeltaLensError(f"apply_to={apply_to!r}: choose one of {', '.join(APPLY_TO)}")
        self.apply_to = apply_to
        self._names = set(chosen_names([n for n, _ in parameter_names(model)], include, exclude))
        self._scratch = Scratch()
        self._ever: dict[str, PackedMask] = {}
        self._before: dict[str, Tensor] = {}
        self._kept: dict[str, PackedMask] = {}

    @abc.abstractmethod
    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Make the masked entries of the gradients zero, in place, in `local`.

        Args:
            step: the step.
            gradients: those of it that are masked.
            kept: tensor -> a mask in which the entries that stay are to be made true; what is true
                in it already is left so.
        """

    def before_step(self, step: GradientStep) -> None:
        """Mask the gradients."""
        gradients = [
            one
            for one in step.gradients
            if one.name in self._names and one.entries and one.parameter.grad is not None
        ]
        if not gradients:
            return
        begun = time.perf_counter()
        for one in gradients:
            if self.thins:
                _refuse_sparse(one)
            if one.name not in self._ever:
                self._ever[one.name] = PackedMask(one.local.numel(), one.local.device)
        kept: Mapping[str, PackedMask] = self._ever
        if self.apply_to == "update":
            kept = self._kept = {
                one.name: PackedMask(one.local.numel(), one.local.device) for one in gradients
            }
            self._keep_parameters(gradients)
        self.mask(step, gradients, kept)
        for one in gradients:
            if self.thins and one.parameter.grad is not None:
                one.write_back()
        for name, mask in self._kept.items():
            self._ever[name].include(mask)
        self.steps += 1
        self.seconds += time.perf_counter() - begun

    def after_step(self, step: GradientStep) -> None:
        """Put back the weights that the mask leaves out, if that was asked for."""
        begun = time.perf_counter()
        for one in step.gradients:
            kept = self._kept.pop(one.name, None)
            if kept is not None:
                _restore(local_part(one.parameter), self._before[one.name], kept)
        self.seconds += time.perf_counter() - begun

    def coverage(self) -> float:
        """The share of entries that any step's mask has kept so far; on this process's shards."""
        counts = [int(mask.count()) for mask in self._ever.values()]
        total = sum(mask.size for mask in self._ever.values())
        return sum(counts) / total if total else 0.0

    def _keep_parameters(self, gradients: Sequence[Gradient]) -> None:
        for one in gradients:
            now = local_part(one.parameter)
            before = self._before.get(one.name)
            if before is None or before.shape != now.shape or before.dtype != now.dtype:
                before = self._before[one.name] = torch.empty_like(
                    now, memory_format=torch.contiguous_format
                )
            before.copy_(now)


def _refuse_sparse(one: Gradient) -> None:
    grad = one.parameter.grad
    if grad is not None and grad.is_sparse:
        raise DeltaLensError(
            f"{one.name!r} has a sparse gradient, which no mask can thin: make its embedding with "
            "sparse=False, or leave it out with exclude="
        )


def _restore(now: Tensor, before: Tensor, kept: PackedMask) -> None:
    flat = now.reshape(-1)
    old = before.view(-1)
    if now.device.type == "cpu":
        restore_beside(flat, old, kept)
    else:
        flat.copy_(torch.where(kept.unpacked(), flat, old))
    if flat.data_ptr() != now.data_ptr():
        now.copy_(flat.view(now.shape))
