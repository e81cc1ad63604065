"""`deltalens reproduce`: experiments of the papers, planned, or run step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from deltalens.api.recipe_steps import as_step
from deltalens.api.reproducing import Reproduction, plans_of, reproduce
from deltalens.api.steps import Begun, Outcome, ReproduceWatch, Step
from deltalens.cli import console
from deltalens.cli.commands import flag
from deltalens.cli.generate import Command, Terminal
from deltalens.cli.planning import shown_bytes
from deltalens.cli.running import framed
from deltalens.cli.steps import DemoTraining, command_of_step, run_step, typed_line
from deltalens.errors import DeltaLensError, fault_list
from deltalens.recipes.estimate import CORES, GPU, Cost, cost_of, total_of
from deltalens.recipes.schema import Choice

if TYPE_CHECKING:
    from deltalens.recipes import Plan, PlannedStep

__all__ = ["REPRODUCE", "run_recipes"]

_ASSUMED = (
    "hours: 6 operations a parameter and token in training, 2 in measuring; on an H100 at 40 % and",
    "10 % of its bf16 peak (989 TFLOP/s), on two CPU cores at 75 and 90 GFLOP/s. Small models and",
    "short rows take longer. memory: weights, gradients and AdamW's states, without activations.",
    "disk: models, rows, trained checkpoints, and one to go on from.",
)
_MOST_HOURS_ON_CORES = 48
_STEPS_A_SECOND = 12
"""Of the demo's models, two trainings at once on two cores."""


def _run(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Plan, or run; each step is shown as it would be typed."""
    with framed(command, terminal, typed):
        if terminal.dry_run:
            given = {name: value for name, value in typed.items() if value is not None}
            given.setdefault("out", command.parameters["out"].default)
            given.setdefault("names", ())
            _show_plans(plans_of(**given), terminal.as_json)
            return
        run_recipes(command, terminal, typed)


def run_recipes(command: Command, terminal: Terminal, typed: Mapping[str, Any]) -> None:
    """Run recipes by a command; each step is shown as it would be typed.

    Args:
        command: whose function takes a `ReproduceWatch` and returns a `Reproduction`.
        terminal: how it speaks.
        typed: its options.

    Raises:
        DeltaLensError: a step or figure failed; the others were made.
    """
    console.quieten(terminal.verbose)
    quiet = terminal.quiet or terminal.as_json
    with DemoTraining(quiet) as making:
        found: Reproduction = command.call(typed, watch=_watch(making, terminal, quiet))
    if terminal.as_json:
        console.print_json(found.as_json())
    elif not terminal.quiet:
        _show(found)
    if found.failed:
        reasons = [f"{each.name}: {each.reason}" for each in found.failed]
        raise DeltaLensError(
            fault_list("failed (the same command goes on with what is missing):", reasons)
        )


def _watch(making: DemoTraining, terminal: Terminal, quiet: bool) -> ReproduceWatch:
    """Tells of steps, and runs them as commands."""
    inner = Terminal(quiet=quiet, debug=terminal.debug)

    def take(step: Step) -> None:
        making.end()
        try:
            run_step(step, inner)
        except typer.Exit as left:
            # A command has said what is wrong, and leaves the program; here the next one follows.
            if left.__cause__ is not None:
                raise left.__cause__ from None
            raise

    def at(begun: Begun) -> None:
        making.end()
        if not quiet:
            left = begun.seconds_left
            ahead = f", about {_time(left / 3600)} left of all" if left is not None else ""
            console.say("")
            console.say(f"[{begun.number} of {begun.total}{ahead}] {begun.step.name}")
            if begun.step.owner is not None:
                console.say(f"$ {_of_owner(begun.step)}")

    def end(outcome: Outcome) -> None:
        if not quiet:
            console.say(f"{outcome.name}: {_became(outcome)}")

    def fetch(name: str) -> None:
        if not quiet:
            console.say(f"downloading rows: {name}", err=True)

    return ReproduceWatch(train=making.report, step=take, at=at, end=end, fetch=fetch)


def _became(outcome: Outcome) -> str:
    if outcome.state == "not run":
        return f"not run, because {outcome.reason}"
    return f"{outcome.state}: {outcome.reason}" if outcome.reason else outcome.state


def _show(found: Reproduction) -> None:
    console.say("")
    for each in (*found.steps, *found.figures):
        took = (
            f" ({each.seconds:,.0f} s{', before' if each.before else ''})" if each.seconds else ""
        )
        console.say(f"{each.name}: {_became(each)}{took}")
    for picture in found.pictures:
        if picture.suffix in (".png", ".md"):
            console.say(f"picture: {picture}")


def _show_plans(plans: Sequence[Plan], as_json: bool) -> None:
    """What would run."""
    if as_json:
        console.print_json({"recipes": [_as_json(each) for each in plans]})
        return
    for each in plans:
        for line in _lines(each):
            console.say(line)
        console.say("")
    for line in _ASSUMED:
        console.say(line)
    console.say("nothing was written; without --dry-run it runs, and what is finished is kept")


def _lines(plan: Plan) -> Iterator[str]:
    recipe = plan.recipe
    yield f"{recipe.name}: {recipe.title}"
    for note in recipe.notes:
        yield f"  note: {note}"
    if plan.places.demo:
        yield f"  in miniature: {recipe.demo.note if recipe.demo else ''}"
    else:
        yield from _settings(plan)
        yield from _downloads(plan)
    for number, step in enumerate(plan.steps, start=1):
        yield f"  {number}. {step.why}"
        if step.owner is not None:
            yield f"     {_of_owner(step)}"
            yield f"     of another owner, or not run, because {step.owner.because}"
            continue
        yield f"     {_typed(step)}"
        amount = _amount(cost_of(step, plan), plan.places.demo)
        if amount:
            yield f"     {amount}"
    if plan.figures:
        yield f"  draws: {', '.join(figure.name for figure in plan.figures)}"
    yield f"  in all: {_amount(_total(plan), plan.places.demo) or 'seconds'}"


def _total(plan: Plan) -> Cost:
    total = total_of(cost_of(step, plan) for step in plan.steps)
    fetched = sum(model.size for model in plan.models.values())
    fetched += sum(data.size for data in plan.data.values())
    return total_of([total, Cost(disk=fetched)])


def _settings(plan: Plan) -> Iterator[str]:
    """Hyperparameters, and who chose them."""
    groups = dict.fromkeys(group for step in plan.steps for group in step.uses)
    lines: dict[str, None] = {}
    for group in groups:
        for name, each in plan.recipe.settings[group].items():
            whose = f"paper, {each.paper}" if each.paper else f"ours: {each.ours}"
            lines[f"  {name.removeprefix('setting.')} = {_shown(each.value)}  ({whose})"] = None
    yield from lines


def _shown(value: Any) -> str:
    if isinstance(value, Choice):
        return ", ".join(f"{key}: {_shown(each)}" for key, each in value.values.items())
    if value is None:
        return "as it is"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _downloads(plan: Plan) -> Iterator[str]:
    for model in plan.models.values():
        yield f"  downloads: {model.hub}, {shown_bytes(model.size)}"
    for data in plan.data.values():
        for source in data.sources:
            yield f"  downloads: {source.hub}, {shown_bytes(source.megabytes * 1e6)} of rows"


def _amount(cost: Cost, demo: bool) -> str:
    parts = []
    if cost.trainings:
        trainings = "1 training" if cost.trainings == 1 else f"{cost.trainings:,} trainings"
        parts.append(f"{trainings}, {cost.steps:,} steps")
    if cost.cells and not cost.trainings:
        parts.append(f"{cost.cells:,} cells")
    if demo:
        seconds = cost.steps / _STEPS_A_SECOND
        return ", ".join([*parts, f"about {seconds:,.0f} s on two cores"] if seconds else parts)
    if cost.hours(GPU):
        parts.append(f"{_time(cost.hours(GPU))} on one H100")
    if 0 < cost.hours(CORES) <= _MOST_HOURS_ON_CORES:
        parts.append(f"{_time(cost.hours(CORES))} on two CPU cores")
    if cost.memory:
        parts.append(f"{shown_bytes(cost.memory)} of memory")
    if cost.disk:
        parts.append(f"{shown_bytes(cost.disk)} on the disk")
    return ", ".join(parts)


def _time(hours: float) -> str:
    if hours >= 1.5:
        return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:,.1f} hours"
    return f"{max(1, round(60 * hours))} min"


def _typed(step: PlannedStep) -> str:
    made = as_step(step)
    return typed_line(command_of_step(made), made.arguments)


def _of_owner(step: PlannedStep) -> str:
    return " ".join([*step.command, *step.arguments])


def _as_json(plan: Plan) -> Mapping[str, Any]:
    total = _total(plan)
    return {
        "name": plan.recipe.name,
        "title": plan.recipe.title,
        "figures": [figure.name for figure in plan.figures],
        "models": {name: model.hub for name, model in plan.models.items()},
        "data": {name: [each.hub for each in data.sources] for name, data in plan.data.items()},
        "steps": [
            {
                "name": step.name,
                "command": _of_owner(step) if step.owner else _typed(step),
                **_numbers(cost_of(step, plan)),
            }
            for step in plan.steps
        ],
        "total": _numbers(total),
    }


def _numbers(cost: Cost) -> Mapping[str, float]:
    return {
        "trainings": cost.trainings,
        "steps": cost.steps,
        "cells": cost.cells,
        "gpu_hours": cost.hours(GPU),
        "two_core_hours": cost.hours(CORES),
        "memory_bytes": cost.memory,
        "disk_bytes": cost.disk,
    }


REPRODUCE = Command(
    name="reproduce",
    function=reproduce,
    run=_run,
    examples=(
        "deltalens reproduce gmt-fig3 --dry-run",
        "deltalens reproduce mft-tab1 --demo -o small/",
    ),
    interrupted="stopped; finished steps are kept in {out}, the same command goes on",
    extra=(flag("dry_run", "Show the commands, downloads, hours, memory and disk."),),
)
