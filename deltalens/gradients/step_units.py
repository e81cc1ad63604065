"""Check that gradients which a scope ranks together are final at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from deltalens.errors import DeltaLensError
from deltalens.gradients.steps import Gradient, GradientStep
from deltalens.names import NameFilter, Scope, unit_of

__all__ = ["StepUnits"]


class StepUnits:
    """Refuse scopes that rank together what several optimizers step one after the other.

    The gradients of later optimizers are not final yet when the first one steps.

    Args:
        scope: what is ranked together.
        names: selects the parameters that are ranked.
    """

    def __init__(self, scope: Scope, names: NameFilter) -> None:
        self._scope, self._names = scope, names
        self._shared_step: object = self
        self._part_by_unit: dict[str, int] = {}

    def check(self, step: GradientStep, gradients: Sequence[Gradient]) -> None:
        """Check one optimizer's part of a step, before it is ranked.

        Args:
            step: the optimizer step.
            gradients: those of its gradients that are ranked.

        Raises:
            DeltaLensError: another optimizer steps gradients of the same unit.
        """
        if self._scope == "tensor":
            return
        if step.shared_step is not self._shared_step:
            self._shared_step, self._part_by_unit = step.shared_step, {}
        for gradient in gradients:
            unit = unit_of(gradient.name, self._scope)
            if self._part_by_unit.setdefault(unit, step.part) != step.part:
                self._refuse(step, gradient.name)
        for name in step.left_to_others:
            if name in self._names and unit_of(name, self._scope) in self._part_by_unit:
                self._refuse(step, name)

    def _refuse(self, step: GradientStep, name: str) -> None:
        ranked = "the gradients of each block" if self._scope == "layer" else "all gradients"
        raise DeltaLensError(
            f"scope={self._scope!r} ranks {ranked} together, but several optimizers "
            f"take this step one after the other ({type(step.optimizer).__name__} steps "
            f"{name!r}), and the first one steps before the gradients of the others are final. "
            "Use scope='tensor', or a single optimizer with several parameter groups that steps "
            "after backward()"
        )
