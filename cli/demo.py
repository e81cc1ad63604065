"""`deltalens demo`: the main job on models made on the spot; its sub-commands show more on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from deltalens.cli import console
from deltalens.cli.drop_study import drop_study
from deltalens.cli.inspect import inspect
from deltalens.cli.options import Debug, Quiet
from deltalens.errors import Lines

__all__ = ["DEFAULT_FOLDER", "Folder", "app", "interrupted", "made", "say"]

DEFAULT_FOLDER = Path("deltalens-demo")

Made = TypeVar("Made")
"""Where the parts of a demo lie that were made."""

Folder = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the demo is made.")]

app = typer.Typer(invoke_without_command=True, subcommand_metavar="[COMMAND]")


@app.callback()
def demo(
    context: typer.Context,
    out: Folder = DEFAULT_FOLDER,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a tiny base and a fine-tune of it, then inspect them and study drops.

    Takes about three minutes on two cores, downloads nothing, and leaves ordinary Hugging Face
    folders, and rows to train on and to test by, to try the other commands on. A second run starts
    at once.

    \b
    Example:
    deltalens demo -o deltalens-demo/
    """
    if context.invoked_subcommand is not None:
        # An option counts on either side of the sub-command's name.
        context.default_map = {context.invoked_subcommand: dict(context.params)}
        return
    with console.command(debug, interrupted(out)):
        from deltalens.demo import build_demo

        paths = made(build_demo, out, quiet, {"base": "base", "ft": "fine-tune"})
        say(quiet, f"base:      {paths.base}\nfine-tune: {paths.ft}")
        say(quiet, f"rows:      {paths.train}, {paths.test}")
        ft, base, test = str(paths.ft), str(paths.base), paths.data["maths"]["test"]
        places = [out / name for name in ("anatomy", "study-fidelity", "study-maths")]
        say(quiet, _ASKED[0].format(ft=ft, base=base, out=places[0]))
        inspect(ft, base, places[0], quiet=quiet)
        say(quiet, _ASKED[1].format(ft=ft, base=base, out=places[1]))
        drop_study(ft, base, places[1], quiet=quiet)
        say(quiet, _ASKED[2].format(ft=ft, base=base, out=places[2], data=test))
        drop_study(ft, base, places[2], data=[test], quiet=quiet)


_ASKED = (
    "\nHow is the delta made?\n$ deltalens inspect {ft} {base} -o {out}\n",
    "\nHow much can be put back, judged without data?\n"
    "$ deltalens drop-study {ft} {base} -o {out}\n",
    "\n... and judged on 300 problems that it has not seen?\n"
    "$ deltalens drop-study {ft} {base} --data {data} -o {out}\n",
)


def made(build: Callable[..., Made], out: Path, quiet: bool, trained: Mapping[str, str]) -> Made:
    """Build a part of the demo, with progress; `trained` says in words what each stage trains."""
    console.quieten()
    with console.meter(quiet) as meter:
        stage: list[str] = []

        def report(name: str, done: int, total: int) -> None:
            if stage[-1:] != [name]:
                stage.append(name)
                meter.stage(f"training the demo's {trained[name]}", total)
            meter.at(done, total)

        return build(out, report=report)


def interrupted(out: Path) -> str:
    """What Ctrl-C leaves."""
    return f"stopped; what is finished is kept in {out}"


def say(quiet: bool, text: str) -> None:
    """Print the lines of a text, unless asked for quiet."""
    if not quiet:
        console.say(Lines(*text.split("\n")))
