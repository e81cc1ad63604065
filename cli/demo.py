"""`deltalens demo`: the main job on models made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.drop_study import drop_study
from deltalens.cli.inspect import inspect
from deltalens.cli.options import Debug, Quiet


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where the demo is made.")
    ] = Path("deltalens-demo"),
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a tiny base and a fine-tune of it, then inspect them and study drops.

    Takes about three minutes on two cores, downloads nothing, and leaves ordinary Hugging Face
    folders to try the other commands on. A second run starts at once.

    \b
    Example:
    deltalens demo -o deltalens-demo/
    """
    with console.command(debug, f"stopped; what is finished is kept in {out}"):
        console.quieten()
        from deltalens.demo import build_demo

        with console.meter(quiet) as meter:
            stage: list[str] = []

            def report(name: str, done: int, total: int) -> None:
                if stage[-1:] != [name]:
                    stage.append(name)
                    meter.stage(f"training the demo's {_MODELS[name]}", total)
                meter.at(done, total)

            paths = build_demo(out, report=report)
        _say(quiet, f"base:      {paths.base}\nfine-tune: {paths.ft}")
        ft, base, test = str(paths.ft), str(paths.base), paths.data["maths"]["test"]
        places = [out / name for name in ("anatomy", "study-fidelity", "study-maths")]
        _say(quiet, _ASKED[0].format(ft=ft, base=base, out=places[0]))
        inspect(ft, base, places[0], quiet=quiet)
        _say(quiet, _ASKED[1].format(ft=ft, base=base, out=places[1]))
        drop_study(ft, base, places[1], quiet=quiet)
        _say(quiet, _ASKED[2].format(ft=ft, base=base, out=places[2], data=test))
        drop_study(ft, base, places[2], data=[test], quiet=quiet)


_MODELS = {"base": "base", "ft": "fine-tune"}

_ASKED = (
    "\nHow is the delta made?\n$ deltalens inspect {ft} {base} -o {out}\n",
    "\nHow much can be put back, judged without data?\n"
    "$ deltalens drop-study {ft} {base} -o {out}\n",
    "\n... and judged on 300 problems that it has not seen?\n"
    "$ deltalens drop-study {ft} {base} --data {data} -o {out}\n",
)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        typer.echo(text)
