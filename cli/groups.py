"""Groups whose commands are made when they are typed: `train` has one for every method."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from typer.core import TyperCommand, TyperGroup

from deltalens.catalog.methods import facts_of
from deltalens.cli import console
from deltalens.cli.commands import SWEEPS, train_command, train_commands
from deltalens.cli.generate import Command, command_of
from deltalens.errors import DeltaLensError
from deltalens.training.methods import method_class

__all__ = ["ListingGroup", "SweepGroup", "TrainGroup", "title_of"]


def title_of(command: Command) -> str:
    """What a command does.

    Args:
        command: ours.

    Returns:
        The first paragraph of its help.
    """
    text = command.about or inspect.getdoc(command.function) or ""
    return text.partition("\n\n")[0]


class ListingGroup(TyperGroup):
    """A group that is listed by its commands' titles: to make a command takes longer than to show
    all of them."""

    def title(self, name: str) -> str | None:
        """Say what a command does, in one line.

        Args:
            name: of the command.

        Returns:
            The line; None if the command has to be made to know it.
        """
        raise NotImplementedError

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands, each in a line."""
        shown = {}
        for name in self.list_commands(ctx):
            title = self.title(name)
            made = self.get_command(ctx, name) if title is None else TyperCommand(name, help=title)
            if made is not None:
                shown[name] = made
        limit = formatter.width - 6 - max(map(len, shown), default=0)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, made.get_short_help_str(limit)) for name, made in shown.items()]
            )


class TrainGroup(ListingGroup):
    """`deltalens train`: a command for each method, ours and those of installed packages."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the methods.

        Returns:
            Ours and those of installed packages.
        """
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            names = [*train_commands()]
        for warning in told:
            console.say(warning.message, err=True, before="deltalens: ")
        return names

    def title(self, name: str) -> str | None:
        """See `ListingGroup`."""
        facts = facts_of(name)
        return (facts and facts.about) or None

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Make the command of a method.

        Returns:
            The command.

        Raises:
            DeltaLensError: no such method; names the nearest.
        """
        facts = method_class(cmd_name).facts
        if facts.as_trained or facts.as_it_is:
            raise DeltaLensError(f"method {cmd_name!r}: only studies have it")
        return command_of(train_command(cmd_name))


class SweepGroup(ListingGroup):
    """`deltalens sweep`: one command for each setting that is swept."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name what can be swept.

        Returns:
            The commands' names.
        """
        return [command.name for command in SWEEPS]

    def title(self, name: str) -> str | None:
        """See `ListingGroup`."""
        return next(title_of(command) for command in SWEEPS if command.name == name)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Make the command that sweeps it.

        Returns:
            The command; None if nothing of this name can be swept.
        """
        found = [command for command in SWEEPS if command.name == cmd_name]
        return command_of(found[0]) if found else None
