"""`deltalens demo landscape`: MFT's Figures 6 and 10 on the demo's models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.demo import DEFAULT_FOLDER, Folder, interrupted, made, say
from deltalens.cli.landscape import landscape
from deltalens.cli.options import Debug, Quiet

_GRID = "15x15"
_TRAINED = {
    "base": "base",
    "ft": "fine-tune",
    "continued": "continued fine-tune",
    "masks": "masks",
}


def demo_landscape(
    out: Folder = DEFAULT_FOLDER,
    domain: Annotated[
        str, typer.Option(metavar="maths|instructions|code", help="What the fine-tune learns.")
    ] = "maths",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Scan the loss through the demo's fine-tune, its continued fine-tune and its masked child.

    Takes about three minutes on two cores if the demo is not there yet, downloads nothing, and can
    be stopped: the same command goes on where it was.

    \b
    Example:
    deltalens demo landscape -o deltalens-demo/
    deltalens demo landscape -o deltalens-demo/ --domain code
    """
    with console.command(debug, interrupted(out)):
        from deltalens.demo.landscape import ROWS, build_landscape
        from deltalens.figures import draw_figure
        from deltalens.numerics.workers import one_thread

        paths = made(
            lambda folder, report: build_landscape(folder, domain, report=report),
            out,
            quiet,
            _TRAINED,
        )
        study = out / f"landscape-{domain}"
        say(quiet, _ASKED.format(p=paths, grid=_GRID, limit=ROWS, out=study))
        with one_thread():
            landscape(
                str(paths.ft),
                study,
                [str(paths.continued), str(paths.masked)],
                data=[paths.train, paths.test],
                base=str(paths.base),
                grid=_GRID,
                limit=ROWS,
                quiet=quiet,
                debug=debug,
            )
        if domain == "code":
            pictures = draw_figure("mft-fig10", study, out)
        else:
            studies = [out / f"landscape-{name}" for name in ("maths", "instructions")]
            pictures = draw_figure("mft-fig6", [s for s in studies if _is_drawn(s)], out)
        for picture in pictures:
            say(quiet, f"picture: {picture}")


def _is_drawn(study: Path) -> bool:
    return (study / "landscape.png").is_file()


_ASKED = (
    "\nWhere do the three lie, and what is between them?\n"
    "$ deltalens landscape {p.ft} {p.continued} {p.masked} --base {p.base} \\\n"
    "    --data {p.train} --data {p.test} --limit {limit} --grid {grid} -o {out}\n"
)
