"""Steps of demos and recipes: functions with arguments, run and shown as commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deltalens.api import training
from deltalens.api.described import Arg, parameters_of
from deltalens.api.steps import Step
from deltalens.cli import console
from deltalens.cli.commands import COMMANDS, SWEEPS, train_command
from deltalens.cli.generate import Command, Terminal

if TYPE_CHECKING:
    from deltalens.cli.console import Meter

__all__ = ["DemoTraining", "command_of_step", "run_step", "typed_line"]


class DemoTraining:
    """Progress of the demo's own models."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._open: Any = None
        self._meter: Meter | None = None
        self._stage = ""

    def __enter__(self) -> DemoTraining:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def report(self, name: str, done: int, total: int) -> None:
        """Steps of a model are taken."""
        if self._meter is None:
            self._open = console.meter(self._quiet)
            self._meter = self._open.__enter__()
        if name != self._stage:
            self._stage = name
            self._meter.stage(f"training the demo's {_CALLED.get(name, name)}", total)
        self._meter.at(done, total)

    def end(self) -> None:
        """The models are made."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = self._meter = None


_CALLED = {"ft": "fine-tune", "continued": "continued fine-tune"}


def command_of_step(step: Step) -> Command:
    """Find the command that calls what a step calls.

    Args:
        step: of a demo or a recipe.

    Returns:
        The command.
    """
    if step.function is training.train:
        return train_command(step.arguments["method"])
    return next(each for each in (*COMMANDS, *SWEEPS) if each.function is step.function)


def run_step(step: Step, terminal: Terminal) -> None:
    """Show a step as it would be typed, and run it as that command.

    Args:
        step: of a demo or a recipe.
        terminal: how the command talks.
    """
    command = command_of_step(step)
    if not terminal.quiet:
        console.say("")
        console.say(step.question)
        console.say(f"$ {typed_line(command, step.arguments)}")
        console.say("")
    extra = {each.name: each.default for each in command.extra}
    inner = Terminal(quiet=terminal.quiet, debug=terminal.debug, extra=extra)
    arguments = {**step.arguments}
    arguments |= arguments.pop(command.more_as, None) or {}
    command.run(command, inner, arguments)


def typed_line(command: Command, arguments: Mapping[str, Any]) -> str:
    """A call of a function as it would be typed.

    Args:
        command: of the function.
        arguments: of the call, by name.

    Returns:
        A line for a shell.
    """
    groups = {**{each.name: "sweep " for each in SWEEPS}}
    group = "train " if command.more_as else groups.get(command.name, "")
    words: list[str] = ["deltalens", *f"{group}{command.name}".split()]
    options: list[str] = []
    own = arguments.get(command.more_as) or {}
    known = {**parameters_of(command.function), **{name: command.more[name] for name in own}}
    for name, parameter in known.items():
        value = own.get(name, arguments.get(name))
        if value is None or value is False or name in (*command.fixed, command.more_as):
            continue
        if isinstance(parameter.said, Arg):
            words += map(str, value) if parameter.said.repeat else [str(value)]
            continue
        flag = parameter.said.flags[0] if parameter.said.flags else f"--{name.replace('_', '-')}"
        for each in _values(name, value):
            options += [flag] if each is True else [flag, each]
    return shlex.join([*words, *options])


def _values(name: str, value: Any) -> list[Any]:
    """What is typed behind a flag, once or several times."""
    if isinstance(value, Mapping):
        return [f"{key.replace('_', '-')}={each}" for key, each in value.items()]
    if isinstance(value, list):
        return [str(each) for each in value]
    if isinstance(value, tuple):
        return [",".join(map(str, value))]
    return [True] if value is True else [str(value)]
