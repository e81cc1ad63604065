"""What a plan takes: floating-point operations, hours, memory and disk, from counts alone.

A training step is taken for 6 operations a parameter and token, and reading or writing a token for
2. On a GPU this runs at a share of its peak (`GPU`), on CPU cores at a rate that was measured
(`CORES`). What is not counted: loading, drawing, and the salience of SPEFT beside its trainings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.catalog.methods import REFERENCES, facts_of, has_ratio, method_name
from deltalens.numerics.rates import exact_rates
from deltalens.recipes.plan import Plan, PlannedStep

__all__ = ["CORES", "GPU", "Cost", "Speed", "cost_of", "total_of"]

_STEP, _FORWARD = 6, 2
"""Operations for each parameter and token."""
_WEIGHTS_AND_ADAM = 4
"""Numbers a trained parameter takes in memory: itself, its gradient, AdamW's two states."""
_CHECKPOINT = 3
"""Numbers a parameter takes in a checkpoint to go on from: itself, and AdamW's two states."""
_RANDOM_ORDERS = 3
_TASK_ROWS, _TASK_TOKENS = 1000, 1000
"""Of a standard task that a recipe says nothing about."""
_TEXTS, _TEXT_TOKENS = 64, 128
"""That fidelity is measured on (`FidelityTexts`)."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a machine is taken to be, in operations a second."""

    name: str
    training: float
    measuring: float
    writing: float
    """Of texts, a token at a time."""


GPU = Speed(name="H100", training=0.4 * 989e12, measuring=0.1 * 989e12, writing=0.1 * 989e12)
"""Of the bf16 peak (989 TFLOP/s): 40 % in training, 10 % in measuring, which mostly generates."""
CORES = Speed(name="two CPU cores", training=75e9, measuring=90e9, writing=11e9)
"""Measured with a model of 135 M parameters in fp32: 15 s for a step of 8 rows of 170 tokens, 30 s
for the loss on 60. Answers to 30 took 205 s on cores that were shared: some two minutes alone."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step takes, or several."""

    trainings: int = 0
    steps: int = 0
    """Optimizer steps, of all trainings."""
    cells: int = 0
    """Models that are measured."""
    training_flops: float = 0
    measuring_flops: float = 0
    writing_flops: float = 0
    memory: float = 0
    """Bytes at the peak, without activations."""
    disk: float = 0
    """Bytes that stay."""

    def hours(self, speed: Speed) -> float:
        """How long it takes on a machine.

        Args:
            speed: of the machine.

        Returns:
            Hours.
        """
        seconds = self.training_flops / speed.training + self.measuring_flops / speed.measuring
        return (seconds + self.writing_flops / speed.writing) / 3600


def total_of(costs: Iterable[Cost]) -> Cost:
    """Add costs of steps that run one after the other.

    Args:
        costs: of the steps.

    Returns:
        Sums, and the highest peak of memory.
    """
    costs = [*costs]
    return Cost(
        trainings=sum(each.trainings for each in costs),
        steps=sum(each.steps for each in costs),
        cells=sum(each.cells for each in costs),
        training_flops=sum(each.training_flops for each in costs),
        measuring_flops=sum(each.measuring_flops for each in costs),
        writing_flops=sum(each.writing_flops for each in costs),
        memory=max((each.memory for each in costs), default=0),
        disk=sum(each.disk for each in costs),
    )


def cost_of(step: PlannedStep, plan: Plan) -> Cost:
    """Estimate a step.

    Args:
        step: of the plan.
        plan: it belongs to, whose recipe says how long data and tasks are.

    Returns:
        The estimate; nothing of a step of another owner, or of a step that only reads records.
    """
    command = " ".join(step.command)
    if step.owner is not None or step.model is None or command in ("monitor", "plot"):
        return Cost()
    parameters, options = step.model.parameters, step.options
    each = 2 if str(options.get("dtype")) == "bfloat16" else 4
    trainings, parts = _trainings(command, step)
    steps, tokens = _length(step)
    cells = trainings if trainings else _cells(command, step)
    measured = _measured(step, plan)
    if command == "efficiency":
        cells, measured = 0, 0
    if command == "salience":
        calibration = int(options.get("steps", 64)) * int(options.get("batch-size", 16))
        tokens_each = max((data.tokens for data in step.rows.get("data", ())), default=0)
        # Four passes for all metrics, and half as much again for parts of the data.
        return Cost(
            training_flops=10.0 * _STEP * parameters * calibration * tokens_each,
            memory=parameters * (each + 8),
        )
    kept = trainings if options.get("keep-checkpoints") or command == "train" else 0
    going_on = _CHECKPOINT * parameters * each if command == "train" else 0
    return Cost(
        trainings=trainings,
        steps=int(steps * parts),
        cells=cells,
        training_flops=_STEP * parameters * tokens * parts,
        measuring_flops=float(_FORWARD * parameters * measured * cells),
        # An answer is written where one is looked for; rows are about as long as their answers.
        writing_flops=float(_FORWARD * parameters * measured * cells)
        if "answer-pattern" in options
        else 0.0,
        memory=parameters * each * (_WEIGHTS_AND_ADAM if trainings else 1),
        disk=kept * parameters * each + going_on,
    )


def _trainings(command: str, step: PlannedStep) -> tuple[int, float]:
    """How many trainings a command takes, and how many whole ones they amount to."""
    options = step.options
    if command == "train":
        return 1, 1.0
    if command == "efficiency":
        count = len(_listed(step.arguments[0])) + 1
        return count, float(count)
    repeats = int(options.get("seeds", 3)) * max(1, len(_listed(options.get("learning-rate"))))
    if command == "compare":
        count = repeats * sum(_own_trainings(name) for name in _listed(step.arguments[0]))
        return count, float(count)
    if not command.startswith("sweep ") or command == "sweep layers-drop":
        return 0, 0.0
    methods = [name for name in _listed(step.arguments[0]) if _own_trainings(name)]
    axis = command.removeprefix("sweep ")
    points, whole = _points(axis, step)
    if axis != "mask-ratio":
        return repeats * len(methods) * points, repeats * len(methods) * whole
    fixed = [name for name in methods if not has_ratio(name)]
    # Masked gradients stand beside plain fine-tuning, masked weights beside the model as it is.
    plain = not any(_masks(name) == "weights" for name in methods) and not any(
        name in REFERENCES for name in methods
    )
    moving, beside = len(methods) - len(fixed), len(fixed) + plain
    return repeats * (moving * points + beside), repeats * (moving * whole + beside)


def _masks(method: str) -> str:
    facts = facts_of(method)
    return facts.masks if facts else ""


def _own_trainings(method: str) -> int:
    """How many trainings a point of a method takes that no other method has."""
    facts = facts_of(method)
    if facts is None:
        return 1
    if not facts.trains or facts.as_trained in REFERENCES:
        return 0
    return 2 if method_name(method).endswith("-continued") else 1


def _points(axis: str, step: PlannedStep) -> tuple[int, float]:
    """How many points an axis has, and how many whole trainings they amount to."""
    options = step.options
    if axis == "mask-ratio":
        count = len(
            [rate for rate in exact_rates(options.get("mask-ratios", "0.1:0.9:0.1")) if rate]
        )
        return count, float(count)
    if axis == "data-ratio":
        ratios = exact_rates(options.get("data-ratios", "0.1,0.2,0.5,1"))
        return len(ratios), float(sum(ratios))
    if axis == "layers":
        blocks = step.model.blocks if step.model else 1
        sizes = [int(size) for size in _listed(options.get("group-sizes", "4"))]
        count = sum(-(-blocks // size) for size in sizes)
        return count, count * float(options.get("data-ratio", 1))
    if axis == "density":
        count = len(_listed(options.get("ranks", "4,8,16,32,64,128")))
        return count, float(count)
    scopes = _listed(options.get("scopes", "global,layer,tensor"))
    count = len(scopes) * (1 + len(_listed(options.get("refresh-every", "1000"))))
    return count, float(count)


def _length(step: PlannedStep) -> tuple[int, float]:
    """Optimizer steps of a training, and tokens that it trains on."""
    options = step.options
    data = next(iter(step.rows.get("train-data", ())), None)
    rows = data.rows if data else 0
    rows = min(rows, int(options["train-limit"])) if "train-limit" in options else rows
    in_a_step = int(options.get("batch-size", 8)) * int(options.get("accumulate", 1))
    steps = int(options["steps"]) if "steps" in options else 0
    if " ".join(step.command) == "efficiency":
        steps = int(options.get("repeats", 7)) * int(options.get("block-steps", 5))
    steps = steps or int(float(options.get("epochs", 1)) * -(-rows // in_a_step))
    length = min(data.tokens, int(options.get("max-length", data.tokens))) if data else 0
    return steps, float(steps * in_a_step * length)


def _cells(command: str, step: PlannedStep) -> int:
    """Models that a study without trainings measures."""
    options = step.options
    if command == "evaluate":
        return len(step.arguments)
    if command == "drop-study":
        rates = [rate for rate in exact_rates(options.get("rates", "0:1:0.1")) if 0 < rate < 1]
        strategies = _listed(options.get("strategies", "salient,trivial,random"))
        orders = int(options.get("seeds", _RANDOM_ORDERS))
        in_order = len([name for name in strategies if name != "random"])
        return 2 + len(rates) * (in_order + ("random" in strategies) * orders)
    if command == "landscape":
        sides = [int(side) for side in str(options.get("grid", "25x25")).split("x")]
        return sides[0] * (sides[1] if len(sides) > 1 else 1)
    if command == "sweep layers-drop":
        return 2 + 2 * sum(32 // int(size) for size in _listed(options.get("group-sizes", "1")))
    return 0


def _measured(step: PlannedStep, plan: Plan) -> int:
    """Tokens that one model is measured on."""
    options = step.options
    limit = int(options["limit"]) if "limit" in options else None
    files = [*step.rows.get("eval-data", ()), *step.rows.get("data", ())]
    total = sum(min(data.rows, limit or data.rows) * data.tokens for data in files)
    few = options.get("task-limit", limit)
    for task in _listed(options.get("tasks")):
        known = plan.recipe.tasks.get(task.partition("=")[0])
        rows = known.rows if known else _TASK_ROWS
        total += min(rows, int(few or rows)) * (known.tokens if known else _TASK_TOKENS)
    if not total and step.command == ("drop-study",):
        return _TEXTS * int(options.get("fidelity-tokens", _TEXT_TOKENS))
    return total


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(each) for each in value]
    return [part for part in str(value).split(",") if part]
