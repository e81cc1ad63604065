"""The command line as its own parser describes it."""

from collections.abc import Iterator
from typing import Any

import typer.main

from deltalens.cli.main import app


def root_command() -> Any:
    return typer.main.get_command(app)


def working_commands(
    command: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that lead to it."""
    if acts(command):
        yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from working_commands(child, (*path, name))


def acts(command: Any) -> bool:
    """Whether a command does something without the name of another after it."""
    return not hasattr(command, "commands") or command.invoke_without_command


def fault_in(arguments: list[str]) -> str | None:
    """Why `deltalens ARGUMENTS` would not parse, or None. Values and files are not looked at."""
    command = root_command()
    arguments = list(arguments)
    while hasattr(command, "commands"):
        if not arguments or arguments[0].startswith("-"):
            break
        name = arguments.pop(0)
        if name not in command.commands:
            return f"no command {name!r}; there are {', '.join(command.commands)}"
        command = command.commands[name]
    if "--help" in arguments:
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
