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
    UnrankableGradients,
    choose_parameters,
    local_part,
)
from deltalens.numerics.edit import restore_outside
from deltalens.numerics.masks import PackedMask
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
        self._names = choose_parameters(model, include, exclude, type(self).__name__)
        self._passed_over = UnrankableGradients(
            f"{type(self).__name__} cannot mask these, and they train densely"
        )
        self._scratch = Scratch()
        self._ever: dict[str, PackedMask] = {}
        self._before: dict[str, Tensor] = {}

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

    def open_step(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Keep the weights, if they are to be put back."""
        if self.apply_to == "update":
            self._keep_parameters([(name, p) for name, p in parameters if name in self._names])

    def before_step(self, step: GradientStep) -> Mapping[str, PackedMask]:
        """Mask the gradients.

        Returns:
            For `update` what each tensor's mask keeps.
        """
        chosen = [
            one
            for one in step.gradients
            if one.name in self._names and one.entries and one.parameter.grad is not None
        ]
        gradients = self._passed_over.sort_out(chosen) if self.thins else chosen
        if not gradients:
            return {}
        begun = time.perf_counter()
        for one in gradients:
            if self.thins:
                _refuse_sparse(one)
            ever = self._ever.get(one.name)
            if ever is None or not _fits(ever, one):
                self._ever[one.name] = _mask_of(one)
        ever_kept = {one.name: self._ever[one.name] for one in gradients}
        kept = ever_kept
        if self.apply_to == "update":
            kept = {one.name: _mask_of(one) for one in gradients}
            if not step.opened:
                self._keep_parameters([(one.name, one.parameter) for one in gradients])
        self.mask(step, gradients, kept)
        for one in gradients:
            if self.thins and one.parameter.grad is not None:
                one.write_back()
        self.count(step)
        if kept is not ever_kept:
            for name, mask in kept.items():
                ever_kept[name].include(mask)
        self.seconds += time.perf_counter() - begun
        return kept if kept is not ever_kept else {}

    def after_step(self, step: GradientStep, held: Mapping[str, PackedMask]) -> None:
        """Put back the weights that the mask leaves out, if that was asked for."""
        begun = time.perf_counter()
        for one in step.gradients:
            if one.name in held:
                _restore(local_part(one.parameter), self._before[one.name], held[one.name])
        self.seconds += time.perf_counter() - begun

    def coverage(self) -> float:
        """The share of entries that any step's mask has kept so far; on this process's shards."""
        counts = [int(mask.count()) for mask in self._ever.values()]
        total = sum(mask.size for mask in self._ever.values())
        return sum(counts) / total if total else 0.0

    def _keep_parameters(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        for name, parameter in parameters:
            now = local_part(parameter)
            before = self._before.get(name)
            if before is None or not _alike(before, now):
                before = self._before[name] = torch.empty_like(
                    now, memory_format=torch.contiguous_format
                )
            before.copy_(now)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Of one shape, dtype and device: a parameter may have been replaced, or moved."""
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


def _mask_of(one: Gradient) -> PackedMask:
    return PackedMask(one.local.numel(), one.local.device)


def _fits(mask: PackedMask, one: Gradient) -> bool:
    return mask.size == one.local.numel() and mask.bytes.device == one.local.device


def _refuse_sparse(one: Gradient) -> None:
    grad = one.parameter.grad
    if grad is not None and grad.layout != torch.strided:
        raise DeltaLensError(
            f"{one.name!r} has a sparse gradient, which no mask can thin: make its embedding with "
            "sparse=False, or leave it out with exclude="
        )


def _restore(now: Tensor, before: Tensor, kept: PackedMask) -> None:
    flat = now.reshape(-1)
    old = before.view(-1)
    restore_outside(flat, old, kept)
    if flat.data_ptr() != now.data_ptr():
        now.copy_(flat.view(now.shape))
