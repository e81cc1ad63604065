"""What a scope ranks together has to be there together."""

from __future__ import annotations

from collections.abc import Sequence

from deltalens.errors import DeltaLensError
from deltalens.gradients.steps import Gradient, GradientStep
from deltalens.names import NameFilter, Scope, unit_of

__all__ = ["StepUnits"]


class StepUnits:
    """Sees to it that what a scope ranks together is there together: where several optimizers take
    a step, one after the other, the gradients of later ones are not final when the first steps.

    Args:
        scope: what is ranked together.
        names: of the parameters that are ranked.
    """

    def __init__(self, scope: Scope, names: NameFilter) -> None:
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
