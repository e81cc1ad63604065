"""What is ranked together in one optimizer step, and at which rank its threshold lies."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch import distributed as dist

from deltalens.errors import DeltaLensError
from deltalens.gradients import Gradient, GradientStep
from deltalens.names import Choice, Scope, unit_of
from deltalens.numerics.selection import device as on_device

__all__ = ["StepUnits", "Unit", "by_place", "is_here", "rank_at", "reducer", "units_of"]

Unit = list[Gradient]
"""Gradients that are ranked together: of one dtype, device and sharding."""


def units_of(gradients: Sequence[Gradient], scope: Scope) -> list[Unit]:
    """What is ranked together under a scope: `tensor`, `layer` (a transformer block) or `global`.

    Entries of different dtypes, devices or sharding never are.
    """
    units: dict[Any, Unit] = {}
    for gradient in gradients:
        name = unit_of(gradient.name, scope)
        local = gradient.local
        units.setdefault((name, local.dtype, local.device, gradient.groups), []).append(gradient)
    return list(units.values())


class StepUnits:
    """Sees to it that what a scope ranks together is there together: where several optimizers take
    a step, one after the other, the gradients of later ones are not final when the first steps.

    Args:
        scope: as in `units_of`.
        names: of the parameters that are ranked.
    """

    def __init__(self, scope: Scope, names: Choice) -> None:
        self._scope, self._names = scope, names
        self._whole: object = self
        self._part_of: dict[str, int] = {}

    def check(self, step: GradientStep, gradients: Sequence[Gradient]) -> None:
        """One optimizer's part of a step is about to be ranked.

        Raises:
            DeltaLensError: some of what the scope ranks together is another optimizer's.
        """
        if self._scope == "tensor":
            return
        if step.whole is not self._whole:
            self._whole, self._part_of = step.whole, {}
        for one in gradients:
            unit = unit_of(one.name, self._scope)
            if self._part_of.setdefault(unit, step.part) != step.part:
                self._refuse(step, one.name)
        for name in step.elsewhere:
            if name in self._names and unit_of(name, self._scope) in self._part_of:
                self._refuse(step, name)

    def _refuse(self, step: GradientStep, name: str) -> None:
        together = "the gradients of a block" if self._scope == "layer" else "all gradients"
        raise DeltaLensError(
            f"scope={self._scope!r} ranks {together} of a step together, and several optimizers "
            f"take this step one after the other, {type(step.optimizer).__name__} among them "
            f"({name!r}): the first steps before the gradients of the others are final. Take "
            "scope='tensor', or one optimizer with several parameter groups that steps after "
            "backward()"
        )


def is_here(gradient: Gradient) -> bool:
    """Whether it is whole, and on the CPU."""
    return not gradient.groups and gradient.local.device.type == "cpu"


def by_place(units: Sequence[Unit]) -> tuple[list[Unit], list[list[Unit]]]:
    """The units on the CPU; and all others, those together that share dtype,
    device and sharding, in an order that is the same on all ranks."""
    here: list[Unit] = []
    there: dict[Any, list[Unit]] = {}
    for unit in units:
        first = unit[0]
        if is_here(first):
            here.append(unit)
        else:
            key = (first.groups, first.local.dtype, first.local.device)
            there.setdefault(key, []).append(unit)
    return here, [sorted(some, key=lambda unit: unit[0].name) for some in there.values()]


def rank_at(unit: Sequence[Gradient], mask_ratio: Fraction) -> int:
    """The rank of the unit's threshold, 0-based and ascending: of the k-th largest magnitude with
    k = n - round(mask ratio * n), at least 1 (GMT, Eq. 3)."""
    total = sum(one.entries for one in unit)
    return min(round(mask_ratio * total), total - 1)


def reducer(gradient: Gradient) -> on_device.Reduce | None:
    """Adds a tensor up over the ranks that hold parts of a gradient; None if it is whole."""
    if not gradient.groups:
        return None

    def reduce(counts: Tensor) -> None:
        for group in gradient.groups:
            dist.all_reduce(counts, group=group)

    return reduce
