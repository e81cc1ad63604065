"""The program `deltalens`: its commands, and the options that belong to none of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from deltalens.cli import (
    compare,
    console,
    demo,
    demo_gmt,
    demo_landscape,
    demo_mft,
    demo_probe,
    drop,
    drop_study,
    efficiency,
    inspect,
    installed,
    landscape,
    monitor,
    plot,
    sweep,
    train,
)
from deltalens.cli.console import BAD_INPUT
from deltalens.cli.output import check_streams
from deltalens.errors import DeltaLensError
from deltalens.io.escaping import plain

__all__ = ["app", "main"]

_UsageError = cast("type[Exception]", typer.BadParameter.__bases__[0])
"""What typer raises for a command line; the library that it is from changes with typer."""


class _Commands(TyperGroup):
    """Ours, and those of installed packages. Words on a command line can be names of files, which a
    shell's pattern brought."""

    def list_commands(self, ctx: Any) -> list[str]:
        ours = super().list_commands(ctx)
        return [*ours, *installed.names(ours)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        ours = super().get_command(ctx, cmd_name)
        return ours or installed.command_of(cmd_name, super().list_commands(ctx))

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
        error.message = plain(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="deltalens",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="See what a fine-tune changed: which weights carry it, and which can go back.",
    epilog="Begin with `deltalens demo`, or with `deltalens drop-study ft/ base/ -o study/`.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("drop-study")(drop_study.drop_study)
app.command("inspect")(inspect.inspect)
app.command("drop")(drop.drop)
app.command("plot")(plot.plot)
app.command("monitor")(monitor.monitor)
app.command("train")(train.train)
app.add_typer(sweep.app, name="sweep")
app.command("compare")(compare.compare)
app.command("efficiency")(efficiency.efficiency)
app.command("landscape")(landscape.landscape)
app.add_typer(demo.app, name="demo")
demo.app.command("probe")(demo_probe.demo_probe)
demo.app.command("gmt")(demo_gmt.demo_gmt)
demo.app.command("mft")(demo_mft.demo_mft)
demo.app.command("landscape")(demo_landscape.demo_landscape)


def _version(wanted: bool) -> None:
    if wanted:
        from deltalens.io.version import version

        console.say(f"deltalens {version()}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
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
        console.say(error, err=True, before="deltalens: ")
        raise SystemExit(BAD_INPUT) from error
    except BrokenPipeError as error:
        raise SystemExit(1) from error
    except Exception as error:
        # A bug of ours: what Python would print itself, escaped.
        console.say_trace()
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
