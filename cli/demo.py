"""`deltalens demo`: models made on the spot, and commands on them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deltalens.api import training
from deltalens.api.demos import DemoWatch, Step, build_demo
from deltalens.api.described import Arg, parameters_of
from deltalens.cli import console
from deltalens.cli.commands import COMMANDS, SWEEPS, train_command
from deltalens.cli.generate import Command, Terminal
from deltalens.cli.running import framed

if TYPE_CHECKING:
    from deltalens.cli.console import Meter

__all__ = ["DEMO", "typed_line"]


def _run(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Make the demo; each step is shown as it would be typed, and run as that command."""
    with framed(command, terminal, typed):
        console.quieten(terminal.verbose)
        training = _Training(terminal.quiet or terminal.as_json)
        inner = Terminal(quiet=terminal.quiet or terminal.as_json, debug=terminal.debug)

        def take(step: Step) -> Any:
            training.end()
            step_command = _command(step)
            if not inner.quiet:
                console.say("")
                console.say(step.question)
                console.say(f"$ {typed_line(step_command, step.arguments)}")
                console.say("")
            step_command.run(step_command, _with_extra(inner, step_command), {**step.arguments})
            for picture in step.pictures():
                if not inner.quiet and picture.suffix in (".png", ".md"):
                    console.say(f"picture: {picture}")

        with training:
            found = command.call(typed, watch=DemoWatch(train=training.report, step=take))
        if terminal.as_json:
            console.print_json({"folders": [*found]})
        elif not terminal.quiet:
            out = typed.get("out") or command.parameters["out"].default
            console.say(f"models and rows to try other commands on: {out}")


class _Training:
    """Progress of the demo's own models."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._open: Any = None
        self._meter: Meter | None = None
        self._stage = ""

    def __enter__(self) -> _Training:
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


def _command(step: Step) -> Command:
    """The command of a step's function."""
    if step.function is training.train:
        return train_command(step.arguments["method"])
    return next(each for each in (*COMMANDS, *SWEEPS) if each.function is step.function)


def _with_extra(terminal: Terminal, command: Command) -> Terminal:
    extra = {each.name: each.default for each in command.extra}
    return Terminal(quiet=terminal.quiet, debug=terminal.debug, extra=extra)


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
    for name, parameter in parameters_of(command.function).items():
        value = arguments.get(name)
        if value is None or name in command.fixed:
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


DEMO = Command(
    name="demo",
    function=build_demo,
    run=_run,
    examples=("deltalens demo -o deltalens-demo/", "deltalens demo gmt -o deltalens-demo/"),
    interrupted="stopped; what is finished is kept, and the same command goes on",
)
