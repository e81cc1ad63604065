"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Base",
    "Debug",
    "Exclude",
    "Ft",
    "Include",
    "Json",
    "Merge",
    "Of",
    "Out",
    "Quiet",
    "Rescale",
    "Scope",
    "Seed",
]

Ft = Annotated[
    str, typer.Argument(metavar="FT", help="The fine-tune: a folder, a file, or org/name[@rev].")
]
Base = Annotated[str, typer.Argument(metavar="BASE", help="The base it was tuned from: likewise.")]
Out = Annotated[
    Path, typer.Option("-o", "--out", metavar="OUT", help="The folder to write; it must be new.")
]
Scope = Annotated[str, typer.Option(metavar="tensor|layer|global", help="What is ranked together.")]
Include = Annotated[
    str | None, typer.Option(metavar="RE", help="Only tensors whose name this finds.")
]
Exclude = Annotated[
    str | None, typer.Option(metavar="RE", help="All tensors but those whose name this finds.")
]
Rescale = Annotated[
    bool, typer.Option("--rescale", help="Divide what is kept by 1 - rate, as DARE does.")
]
Seed = Annotated[int, typer.Option(help="Of the random order, and of the one that settles ties.")]
Of = Annotated[
    str,
    typer.Option(
        metavar="all|changed", help="Count rates over all entries, or over changed ones only."
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge-adapter", help="FT is a PEFT adapter: merge it first, in a temporary folder."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts, no table.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no summary.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
