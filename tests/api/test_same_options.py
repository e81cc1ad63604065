"""A command and its function have the same options, and each has the other."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import typer.main

import deltalens
from deltalens.api.described import parameters_of
from deltalens.cli.commands import COMMANDS, SWEEPS, train_command
from deltalens.cli.demo import DEMO
from deltalens.cli.generate import Command, command_of
from deltalens.cli.main import app
from deltalens.cli.reproduce import REPRODUCE
from deltalens.training.methods import method_class, trainable

FUNCTIONS_ALONE = {
    *("load_study", "load_run"),  # What `plot` and `monitor` begin with.
    *("open_checkpoint", "pair"),  # Two checkpoints' headers, for programs.
    *("apply_masks", "salience"),  # Of a model in memory.
}
COMMAND_LINE_ALONE = {
    *("dry_run", "as_json", "quiet", "verbose", "debug", "options_file", "help_all"),
    *("tensors", "follow"),
}
"""How the terminal is talked to."""
ALL = [*COMMANDS, *SWEEPS, REPRODUCE, DEMO]


def typed(command: Command) -> set[str]:
    made: Any = command_of(command)
    return {parameter.name for parameter in made.params} - COMMAND_LINE_ALONE - {"help"}


def taken(function: Any) -> set[str]:
    return {
        name
        for name, each in parameters_of(function).items()
        if not getattr(each.said, "python_only", False)
    }


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_a_command_has_its_functions_options(command: Command) -> None:
    assert typed(command) == taken(command.function)


@pytest.mark.parametrize("method", [*trainable()])
def test_train_has_those_of_its_function_and_the_methods_settings(method: str) -> None:
    command = train_command(method)
    own = {*method_class(method).own_settings()}
    assert typed(command) == (taken(deltalens.train) - {"method"}) | own


def test_every_function_has_its_command() -> None:
    functions = {
        name
        for name in deltalens.__all__
        if inspect.isfunction(getattr(deltalens, name)) and name not in FUNCTIONS_ALONE
    }
    commanded = {command.function.__name__ for command in ALL} | {"train"}
    assert functions == commanded


def test_every_command_of_the_program_is_one_of_them() -> None:
    root: Any = typer.main.get_command(app)
    assert {*root.list_commands(None)} == {
        *(command.name for command in COMMANDS),
        *("train", "sweep", REPRODUCE.name, DEMO.name),
    }


def test_defaults_are_the_functions() -> None:
    """What is not typed is not handed on."""
    for command in ALL:
        made: Any = command_of(command)
        for parameter in made.params:
            known = command.parameters.get(parameter.name)
            if known is not None and not known.required:
                assert parameter.default in (None, known.default), (command.name, parameter.name)


def test_an_argument_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="drop_study\\(\\) has no argument 'rate'"):
        deltalens.drop_study("ft", "base", "out", rate="0.5")  # type: ignore[call-arg]
