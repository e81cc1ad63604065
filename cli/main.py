"""The program `deltalens`: its commands, and the options that belong to none of them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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
    landscape,
    monitor,
    plot,
    sweep,
    train,
)
from deltalens.cli.console import BAD_INPUT
from deltalens.cli.output import check_streams
from deltalens.errors import DeltaLensError

__all__ = ["app", "main"]

app = typer.Typer(
    name="deltalens",
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
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except DeltaLensError as error:
        console.say(f"deltalens: {error}", err=True, lines=True)
        raise SystemExit(BAD_INPUT) from error
    except BrokenPipeError as error:
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
