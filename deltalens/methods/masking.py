"""The common part of all methods that mask gradients: one mask per optimizer step.

A method decides which entries stay. This module attaches it to a model, measures the coverage, and
leaves masked weights untouched where that is requested (`apply_to="update"`).
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
"""What a mask applies to: the `gradient` that the optimizer reads, or the whole `update` of a
weight."""
APPLY_TO: tuple[ApplyTo, ...] = get_args(ApplyTo)


class StepMask(Subscriber):
    """Mask the gradient of every optimizer step, once per step, after accumulation and clipping.

    Use it as a context manager around the training, or call `attach` and `detach`.

    Args:
        model: the model that is trained; it may be wrapped (DDP, FSDP2, torch.compile) before or
            after.
        optimizer: mask only the steps of this optimizer, or of these; by default those of every
            optimizer that steps parameters of the model.
        apply_to: `gradient` sets masked entries of the gradient to zero, and the optimizer proceeds
            as usual: momentum and weight decay may still move a masked weight. `update` also leaves
            every masked weight bit-identical in the step; it needs a copy of the masked parameters
            and one bit per entry.
        include: mask only parameters whose name matches this regular expression; the others are
            trained densely.
        exclude: do not mask parameters whose name matches this regular expression.

    Raises:
        DeltaLensError: an argument is invalid; raised before anything is hooked.
    """

    writes: ClassVar[bool] = True
    """Masks change gradients, so they run after all readers."""
    masks_entries: ClassVar[bool] = True
    """Whether single entries are masked; otherwise whole tensors are."""

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
        self._unrankable = UnrankableGradients(
            f"{type(self).__name__} cannot mask these parameters, which are trained densely"
        )
        self._scratch = Scratch()
        self._ever_kept: dict[str, PackedMask] = {}
        self._originals: dict[str, Tensor] = {}

    @abc.abstractmethod
    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Set the masked entries of the gradients to zero, in place in `Gradient.local`.

        Args:
            step: the optimizer step.
            gradients: the gradients of the step that are masked.
            kept: parameter name -> mask in which the method marks the entries that stay. Entries
                that are already true are left so.
        """

    def open_step(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Copy the weights before a step that computes its gradients itself, if masked ones are
        restored after it.

        Args:
            parameters: name and parameter of all that the step may move.
        """
        if self.apply_to == "update":
            self._copy_parameters([(name, p) for name, p in parameters if name in self._names])

    def before_step(self, step: GradientStep) -> Mapping[str, PackedMask]:
        """Mask the gradients of a step.

        Args:
            step: the optimizer step; its gradients are final.

        Returns:
            Parameter name -> mask of the entries that may move, for `after_step`; empty if only
            gradients are masked.
        """
        candidates = [
            gradient
            for gradient in step.gradients
            if gradient.name in self._names
            and gradient.entries
            and gradient.parameter.grad is not None
        ]
        gradients = self._unrankable.rankable(candidates) if self.masks_entries else candidates
        if not gradients:
            return {}
        started = time.perf_counter()
        for gradient in gradients:
            if self.masks_entries:
                _refuse_sparse(gradient)
            mask = self._ever_kept.get(gradient.name)
            if mask is None or not _fits(mask, gradient):
                self._ever_kept[gradient.name] = _empty_mask(gradient)
        ever_kept = {gradient.name: self._ever_kept[gradient.name] for gradient in gradients}
        kept = ever_kept
        if self.apply_to == "update":
            kept = {gradient.name: _empty_mask(gradient) for gradient in gradients}
            if not step.announced:
                self._copy_parameters(
                    [(gradient.name, gradient.parameter) for gradient in gradients]
                )
        self.mask(step, gradients, kept)
        for gradient in gradients:
            if self.masks_entries and gradient.parameter.grad is not None:
                gradient.write_back()
        self.count_step(step)
        if kept is not ever_kept:
            for name, mask in kept.items():
                ever_kept[name].include(mask)
        self.seconds += time.perf_counter() - started
        return kept if kept is not ever_kept else {}

    def after_step(self, step: GradientStep, state: Mapping[str, PackedMask]) -> None:
        """Restore the masked weights, if the mask applies to the whole update.

        Args:
            step: the optimizer step, which has been taken.
            state: what `before_step` returned.
        """
        started = time.perf_counter()
        for gradient in step.gradients:
            if gradient.name in state:
                _restore_weights(
                    local_part(gradient.parameter),
                    self._originals[gradient.name],
                    state[gradient.name],
                )
        self.seconds += time.perf_counter() - started

    def coverage(self) -> float:
        """Return the share of entries that at least one step's mask has kept so far.

        Returns:
            A fraction from 0 to 1 of the masked parameters' entries, on this process's shards; 0
            before the first step.
        """
        counts = [int(mask.count()) for mask in self._ever_kept.values()]
        total = sum(mask.size for mask in self._ever_kept.values())
        return sum(counts) / total if total else 0.0

    def _copy_parameters(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        for name, parameter in parameters:
            weight = local_part(parameter)
            original = self._originals.get(name)
            if original is None or not _same_layout(original, weight):
                original = self._originals[name] = torch.empty_like(
                    weight, memory_format=torch.contiguous_format
                )
            original.copy_(weight)


def _same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether shapes, dtypes and devices agree: a parameter may have been replaced, or moved."""
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _empty_mask(gradient: Gradient) -> PackedMask:
    return PackedMask(gradient.local.numel(), gradient.local.device)


def _fits(mask: PackedMask, gradient: Gradient) -> bool:
    return mask.size == gradient.local.numel() and mask.bytes.device == gradient.local.device


def _refuse_sparse(gradient: Gradient) -> None:
    grad = gradient.parameter.grad
    if grad is not None and grad.layout != torch.strided:
        raise DeltaLensError(
            f"{gradient.name!r} has a sparse gradient, which cannot be masked: make its embedding "
            "with sparse=False, or leave it out with exclude"
        )


def _restore_weights(weight: Tensor, original: Tensor, kept: PackedMask) -> None:
    flat = weight.reshape(-1)
    old = original.view(-1)
    restore_outside(flat, old, kept)
    if flat.data_ptr() != weight.data_ptr():
        weight.copy_(flat.view(weight.shape))
