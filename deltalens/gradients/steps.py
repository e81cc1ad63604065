"""One optimizer step: its gradients, and what of several optimizers is one step."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim.optimizer import Optimizer

from deltalens.errors import fault_list
from deltalens.gradients.parameters import FLOATS, local_part, to_strided
from deltalens.numerics.selection import Counts

__all__ = ["Gradient", "GradientStep", "Step", "UnrankableGradients", "gradients_of"]


@dataclass(frozen=True)
class Gradient:
    """The gradient of one parameter in one optimizer step."""

    name: str
    """The parameter's name, without the prefixes of wrappers."""
    parameter: nn.Parameter
    local: Tensor
    """This process's part of the gradient, 1-D; may be empty. A view wherever that can be."""
    entries: int
    """Of the whole tensor, on all processes."""
    scale: Tensor | None
    """What the gradient still has to be divided by (a loss scale); None: nothing."""
    groups: tuple[Any, ...] = ()
    """Process groups over which the tensor is sharded."""

    def write_back(self) -> None:
        """Bring what was changed in `local` into the parameter's gradient, where it is no view."""
        grad = self.parameter.grad
        assert grad is not None
        target = local_part(grad)
        if target.numel() and target.data_ptr() != self.local.data_ptr():
            target.copy_(self.local.view(target.shape))


@dataclass
class GradientStep:
    """What one optimizer does in one step of a training, as a subscriber sees it."""

    optimizer: Optimizer
    number: int
    """Steps that were taken since the subscriber was attached; skipped ones do not count. All
    optimizers that take a step together (`GradientPass`) have the same."""
    gradients: list[Gradient] = field(default_factory=list)
    whole: Step | None = None
    """The step that several optimizers may have their parts of: the same object for all of them."""
    part: int = 0
    """How many optimizers have taken their part of it before this one."""
    elsewhere: tuple[str, ...] = ()
    """Inside a backward pass: the trained parameters that are left to other optimizers."""
    opened: bool = False
    """Whether the subscriber has been told of this step before its gradients were computed."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """Of the gradients that were ranked: shared by all subscribers, until one has written."""


@dataclass(eq=False)
class Step:
    """A step of a training: what one or several optimizers do with the same gradients."""

    in_backward: bool
    """Whether an optimizer stepped inside the backward pass."""
    gradients: dict[int, weakref.ref[Tensor]]
    """Those of other parameters that were there when it began, by parameter."""
    parts: int = 0
    moved: set[int] = field(default_factory=set)
    """Parameters that were stepped."""

    def goes_on(self, parameters: Iterable[nn.Parameter], in_backward: bool) -> bool:
        """Whether stepping these is part of it."""
        if any(id(one) in self.moved for one in parameters):
            return False
        # What steps inside a backward pass comes again in the next one, and was found above.
        if self.in_backward or in_backward:
            return self.in_backward
        for one in parameters:
            held = self.gradients.get(id(one))
            if held is None or held() is not one.grad:
                return False
        return True


def gradients_of(
    parameters: Iterable[tuple[str, nn.Parameter]], optimizer: Optimizer
) -> list[Gradient]:
    scale = getattr(optimizer, "grad_scale", None)
    return [
        _gradient(name, parameter, parameter.grad, scale)
        for name, parameter in parameters
        if parameter.grad is not None
    ]


def _gradient(name: str, parameter: nn.Parameter, grad: Tensor, scale: Tensor | None) -> Gradient:
    grad = to_strided(grad.detach())
    if not isinstance(grad, DTensor):
        return Gradient(name, parameter, grad.reshape(-1).contiguous(), grad.numel(), scale)
    groups = tuple(
        grad.device_mesh.get_group(dim)
        for dim, placement in enumerate(grad.placements)
        if isinstance(placement, Shard)
    )
    local = grad.to_local().reshape(-1).contiguous()
    return Gradient(name, parameter, local, grad.numel(), scale, groups)


class UnrankableGradients:
    """Gradients that cannot be ranked: each is told of once, by name.

    Args:
        what: happens to them.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.reasons: dict[str, str] = {}
        """Name -> why."""

    def sort_out(self, gradients: Iterable[Gradient]) -> list[Gradient]:
        """Those that can be ranked."""
        fit, told = [], []
        for one in gradients:
            dtype = one.local.dtype
            if dtype in FLOATS:
                fit.append(one)
            elif one.name not in self.reasons:
                self.reasons[one.name] = str(dtype).removeprefix("torch.")
                told.append(f"{one.name} ({self.reasons[one.name]})")
        if told:
            warnings.warn(fault_list(f"{self._what}:", told), stacklevel=2)
        return fit
