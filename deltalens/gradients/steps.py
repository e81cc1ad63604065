"""One optimizer step: its gradients, and what makes the calls of several optimizers one step."""

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
    """This process's part of the gradient, 1-D; may be empty. A view wherever possible."""
    entries: int
    """Number of entries of the whole tensor, over all processes."""
    scale: Tensor | None
    """The loss scale by which the gradient still has to be divided, 0-D; None if there is none."""
    groups: tuple[Any, ...] = ()
    """Process groups over which the tensor is sharded."""

    def write_back(self) -> None:
        """Copy changes in `local` to the parameter's gradient, if `local` is not a view of it."""
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
    """Number of steps taken since the subscriber was attached; skipped steps do not count. All
    optimizers that take a step together (`GradientPass`) have the same number."""
    gradients: list[Gradient] = field(default_factory=list)
    shared_step: Step | None = None
    """The step that several optimizers may take part in; the same object for all of them."""
    part: int = 0
    """How many optimizers have taken their part of the step before this one."""
    left_to_others: tuple[str, ...] = ()
    """Inside a backward pass: names of the trained parameters that other optimizers step."""
    announced: bool = False
    """Whether `Subscriber.open_step` was called before the gradients were computed."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """Counts of the gradients that were ranked, shared by all subscribers until one changes
    gradients."""


@dataclass(eq=False)
class Step:
    """A step of a training: what one or several optimizers do with the same gradients."""

    in_backward: bool
    """Whether an optimizer stepped inside the backward pass."""
    gradients: dict[int, weakref.ref[Tensor]]
    """Gradients of other parameters that existed when the step began, by the parameter's id."""
    parts: int = 0
    """How many optimizers have taken part."""
    stepped: set[int] = field(default_factory=set)
    """Ids of the parameters that were stepped."""

    def continues_with(self, parameters: Iterable[nn.Parameter], in_backward: bool) -> bool:
        """Tell whether stepping these parameters is part of this step.

        Args:
            parameters: the parameters that an optimizer is about to step.
            in_backward: whether it steps inside a backward pass.

        Returns:
            False if another step begins with them.
        """
        if any(id(parameter) in self.stepped for parameter in parameters):
            return False
        # Parameters stepped inside a backward pass reappear in the next one: caught above.
        if self.in_backward or in_backward:
            return self.in_backward
        for parameter in parameters:
            gradient_ref = self.gradients.get(id(parameter))
            if gradient_ref is None or gradient_ref() is not parameter.grad:
                return False
        return True


def gradients_of(
    parameters: Iterable[tuple[str, nn.Parameter]], optimizer: Optimizer
) -> list[Gradient]:
    """Collect the gradients of parameters that have one.

    Args:
        parameters: pairs of name and parameter.
        optimizer: the optimizer that steps them; it may carry a loss scale.

    Returns:
        One gradient per parameter that has one.
    """
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
    """Sort out gradients whose dtype cannot be ranked, and warn of each once, by name.

    Args:
        headline: first line of the warning.
    """

    def __init__(self, headline: str) -> None:
        self._headline = headline
        self.reasons: dict[str, str] = {}
        """Parameter name -> its dtype."""

    def rankable(self, gradients: Iterable[Gradient]) -> list[Gradient]:
        """Select the gradients that can be ranked.

        Args:
            gradients: gradients of a step.

        Returns:
            Those of a floating-point dtype in `FLOATS`.
        """
        rankable, new = [], []
        for gradient in gradients:
            dtype = gradient.local.dtype
            if dtype in FLOATS:
                rankable.append(gradient)
            elif gradient.name not in self.reasons:
                self.reasons[gradient.name] = str(dtype).removeprefix("torch.")
                new.append(f"{gradient.name} ({self.reasons[gradient.name]})")
        if new:
            warnings.warn(fault_list(f"{self._headline}:", new), stacklevel=2)
        return rankable
