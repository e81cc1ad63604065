"""A grid of learning rates, the same for every method of a study: each rate is a training of its
own, and rows apart from those that are measured decide which rate a method is shown at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.io.records import LEARNING_RATE_COLUMN, Setting
from deltalens.scoring.rows import DataFile
from deltalens.studies.training_plans import Plan, Plans

__all__ = ["GRID", "check_choosing", "check_grid", "over_rates"]

GRID = "learning_rates"
"""The entry of a study's specification that has the rates, ascending."""


def check_grid(rates: Sequence[float], choose_on: object) -> list[float]:
    """Check a grid before anything is read.

    Args:
        rates: peak learning rates, in any order.
        choose_on: the file whose rows decide.

    Returns:
        Each rate once, ascending.

    Raises:
        DeltaLensError: a rate is not a number above 0; or there are no rows to decide.
    """
    bad = [rate for rate in rates if not 0 < rate < float("inf")]
    if bad:
        raise DeltaLensError(f"learning_rate {bad[0]:g}: must be above 0")
    grid = sorted({*map(float, rates)})
    if choose_on is None:
        raise DeltaLensError(
            f"learning_rate {','.join(f'{rate:g}' for rate in grid)}: the rate of each method is "
            "chosen on rows apart from those it is measured on: give `choose_on`"
        )
    return grid


def check_choosing(choosing: DataFile, files: Sequence[DataFile]) -> None:
    """Refuse to choose a rate on the rows that the methods are then compared on.

    Args:
        choosing: the rows that decide.
        files: the evaluation rows.

    Raises:
        DeltaLensError: they are the same.
    """
    for file in files:
        if file.identity[1:] == choosing.identity[1:]:
            raise DeltaLensError(
                f"{choosing.path}: has the rows of {file.path}: a learning rate chosen on the rows "
                "that it is measured on flatters the method; give other rows to choose on"
            )


def over_rates(plans: Plans) -> Plans:
    """Train every cell of a study at each learning rate of its grid.

    Args:
        plans: from a specification to the cells of one rate.

    Returns:
        The same for all rates: a training's setting has its `learning_rate` before the seed; that
        of a model which takes no steps is 0.
    """

    def expanded(study_spec: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        grid = [float(rate) for rate in study_spec[GRID]]
        return [
            (_at(setting, rate), _trained_at(plan, rate))
            for setting, plan in plans(study_spec)
            for rate in (grid if _takes_steps(plan) else [0.0])
        ]

    return expanded


def _takes_steps(plan: Plan) -> bool:
    """Whether a rate changes anything; `base` without its checkpoint has a plan as well."""
    return plan.checkpoint is None and not plan.as_it_is and plan.spec.method.facts.trains


def _trained_at(plan: Plan, rate: float) -> Plan:
    if not rate:
        return plan
    spec = dataclasses.replace(plan.spec, learning_rate=rate)
    return dataclasses.replace(plan, spec=spec, rate=rate)


def _at(setting: Setting, rate: float) -> Setting:
    """The setting with its rate, in the order of the table's columns."""
    before = {name: value for name, value in setting.items() if name != "seed"}
    return {**before, LEARNING_RATE_COLUMN: rate, "seed": setting["seed"]}
