"""`deltalens plot`: redraw a study, or a training, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import Debug, Json


def plot(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Of a study, or of a training that removed weights."),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Redraw the pictures of a study or a training from its records, computing nothing.

    \b
    Example:
    deltalens plot study/
    """
    with console.command(debug):
        from deltalens.figures import draw

        pictures = draw(folder)
        if as_json:
            console.print_json({"pictures": [str(picture) for picture in pictures]})
        else:
            for picture in pictures:
                console.say(f"drawn: {picture}")
