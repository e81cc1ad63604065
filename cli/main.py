"""The program `deltalens`: its commands, and the options that belong to none of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, cast

import typer

from deltalens.cli import console, installed
from deltalens.cli.commands import COMMANDS
from deltalens.cli.console import BAD_INPUT
from deltalens.cli.demo import DEMO
from deltalens.cli.generate import command_of
from deltalens.cli.groups import ListingGroup, SweepGroup, TrainGroup, title_of
from deltalens.cli.output import check_streams
from deltalens.cli.reproduce import REPRODUCE
from deltalens.errors import DeltaLensError
from deltalens.io.escaping import plain

__all__ = ["app", "main"]

_UsageError = cast("type[Exception]", typer.BadParameter.__bases__[0])
"""What typer raises for a command line; the library that it is from changes with typer."""


class _Commands(ListingGroup):
    """Ours, and those of installed packages. Words on a command line can be names of files, which a
    shell's pattern brought."""

    def list_commands(self, ctx: Any) -> list[str]:
        ours = self._ours(ctx)
        return [*ours, *installed.names(ours)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for command in (*COMMANDS, REPRODUCE, DEMO):
            if command.name == cmd_name:
                return command_of(command)
        group = super().get_command(ctx, cmd_name)
        return group or installed.command_of(cmd_name, self._ours(ctx))

    def title(self, name: str) -> str | None:
        """What one of our own commands does."""
        return next(
            (title_of(each) for each in (*COMMANDS, REPRODUCE, DEMO) if each.name == name), None
        )

    def _ours(self, ctx: Any) -> list[str]:
        return [
            *(command.name for command in COMMANDS),
            *super().list_commands(ctx),
            REPRODUCE.name,
            DEMO.name,
        ]

    def make_context(self, *given: Any, **more: Any) -> Any:
        with _plain_usage():
            return super().make_context(*given, **more)

    def invoke(self, ctx: Any) -> Any:
        with _plain_usage():
            return super().invoke(ctx)


@contextmanager
def _plain_usage() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        # Help is of our own making; everything else may quote what was typed.
        if type(error).__name__ != "NoArgsIsHelpError":
            error.message = plain(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="deltalens",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="See what a fine-tune changed: which weights carry it, and which can go back.",
    epilog="Begin with `deltalens demo`, or with `deltalens drop-study ft/ base/ -o study/`. "
    "Exit codes: 0 done, 1 a bug of ours, 2 bad input, 130 stopped.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

train = typer.Typer(cls=TrainGroup, help="Train a model by a method.", no_args_is_help=True)
sweep = typer.Typer(
    cls=SweepGroup,
    help="Train over and over along one setting, and draw the result.",
    no_args_is_help=True,
)


@train.callback()
@sweep.callback()
def _group() -> None:
    """Its commands are made when they are typed."""


app.add_typer(train, name="train")
app.add_typer(sweep, name="sweep")


def _version(wanted: bool) -> None:
    if wanted:
        from deltalens.io.version import version

        console.say(f"deltalens {version()}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """See what a fine-tune changed: which weights carry it, and which can go back."""


def main() -> None:
    """Run the program."""
    check_streams()
    # Where there is no home, matplotlib tells how to make its next start faster.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except DeltaLensError as error:
        # Of what was typed, before a command could begin.
        console.report(error, as_json="--json" in sys.argv)
        raise SystemExit(BAD_INPUT) from error
    except BrokenPipeError as error:
        raise SystemExit(1) from error
    except Exception as error:
        # A bug of ours: what Python would print itself, escaped.
        console.say_trace()
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
