"""How long what is left of some plans takes, by what their finished steps took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltalens.recipes.estimate import CORES, cost_of
from deltalens.recipes.plan import Plan, PlannedStep

__all__ = ["Pace"]

_START, _CELL = 10.0, 3.0
"""What beginning a step takes (files, processes), and measuring a model, in training steps of the
demo's models."""
_HOUR = 3600.0


class Pace:
    """Compares estimates of steps with what they took.

    Args:
        plans: whose steps are taken.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._amounts: dict[str, float] = {}
        for plan in plans:
            for step in plan.steps:
                self._amounts.setdefault(step.name, _amount(step, plan))

    def seconds_left(self, took: Mapping[str, float], left: Sequence[str]) -> float | None:
        """Estimate what is left.

        Args:
            took: names of finished steps -> seconds.
            left: names of the other steps.

        Returns:
            Seconds; None if nothing that takes time is finished.
        """
        done = sum(self._amounts[name] for name in took)
        if not done:
            return None
        return sum(took.values()) * sum(self._amounts[name] for name in left) / done


def _amount(step: PlannedStep, plan: Plan) -> float:
    """What a step takes, in a unit that all steps of a plan share; nothing of another owner's."""
    if step.owner is not None:
        return 0.0
    cost = cost_of(step, plan)
    if plan.places.demo:
        # Small models take time for each step and cell, whatever their size.
        return _START + cost.steps + _CELL * cost.cells
    return _HOUR * cost.hours(CORES) + 1.0
