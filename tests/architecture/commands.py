"""The command line as its own parser describes it."""

from collections.abc import Iterator
from typing import Any

import typer.main

from deltalens.cli.commands import COMMANDS, SWEEPS, train_command, train_commands
from deltalens.cli.demo import DEMO
from deltalens.cli.generate import Command
from deltalens.cli.main import app
from deltalens.cli.reproduce import REPRODUCE

Words = tuple[str, ...]


def root_command() -> Any:
    return typer.main.get_command(app)


def working_commands(command: Any, path: Words = ()) -> Iterator[tuple[Words, Any]]:
    """Every command that does something, with the words that lead to it."""
    if acts(command):
        yield path, command
    for name in names_below(command):
        yield from working_commands(command.get_command(None, name), (*path, name))


def generated_commands() -> dict[Words, Command]:
    """The words that lead to a command -> what it is made from."""
    return {
        **{(command.name,): command for command in (*COMMANDS, REPRODUCE, DEMO)},
        **{("sweep", command.name): command for command in SWEEPS},
        **{("train", method): train_command(method) for method in train_commands()},
    }


def names_below(command: Any) -> list[str]:
    """The names that may follow a command's own."""
    return [*command.list_commands(None)] if hasattr(command, "list_commands") else []


def acts(command: Any) -> bool:
    """Whether a command does something without the name of another after it."""
    return not hasattr(command, "list_commands") or command.invoke_without_command


def fault_in(arguments: list[str]) -> str | None:
    """Why `deltalens ARGUMENTS` would not parse, or None. Values and files are not looked at."""
    command = root_command()
    arguments = list(arguments)
    while below := names_below(command):
        if not arguments or arguments[0].startswith("-"):
            break
        name = arguments.pop(0)
        if name not in below:
            return f"no command {name!r}; there are {', '.join(below)}"
        command = command.get_command(None, name)
    if {"--help", "--help-all"} & {*arguments}:
        return None
    if not acts(command) and not arguments:
        return "no command given"
    context = typer.Context(command, info_name=command.name)
    try:
        values, left_over, _ = command.make_parser(context).parse_args(args=arguments)
    except Exception as error:  # click's own classes are a private part of typer
        return f"{type(error).__name__}: {error}"
    if left_over:
        return f"too many arguments: {' '.join(left_over)}"
    missing = [p.name for p in command.params if p.required and values.get(p.name) in (None, ())]
    return f"missing: {', '.join(missing)}" if missing else None
