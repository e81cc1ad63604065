"""`deltalens inspect`: the anatomy of a delta."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.fitting import FittingTable
from deltalens.cli.options import Base, Debug, Exclude, Ft, Include, Json, Merge, Quiet, Strict


def inspect(
    ft: Ft,
    base: Base,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="A folder for table and picture."),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="A line for every tensor too.")
    ] = False,
    include: Include = None,
    exclude: Exclude = None,
    strict: Strict = False,
    merge_adapter: Merge = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Describe a delta: how large, how much of it is exactly zero, where its energy lies.

    Streams both checkpoints once; needs neither data nor the memory for a model.

    \b
    Example:
    deltalens inspect ft/ base/ -o anatomy/
    """
    with console.command(debug):
        from deltalens.io.locate import located
        from deltalens.reports.inspect import LEVELS, Anatomy, InspectionSummary
        from deltalens.studies.inspect import inspect as run

        with (
            located(ft, base, merge_adapter) as (ft_path, base_path),
            console.meter(quiet or as_json) as meter,
        ):
            meter.stage("inspecting", None)
            found = run(
                ft_path,
                base_path,
                out,
                include=include,
                exclude=exclude,
                strict=strict,
                progress=meter.at,
            )
        summary = InspectionSummary(
            str(found.pairing.ft.path),
            str(found.pairing.base.path),
            tuple(
                Anatomy(group.level, group.name, group.entries, group.metrics())
                for group in found.groups
            ),
            found.pairing.notes,
            found.pairing.kept,
        )
        pictures: list[Path] = []
        if out is not None:
            from deltalens.figures import draw

            pictures = draw(out)
        if as_json:
            console.print_json({**summary.as_json(), "pictures": [str(p) for p in pictures]})
            return
        if quiet:
            return
        terminal = console.console()
        for table in summary.tables((*LEVELS, *(("tensor",) if tensors else ()))):
            terminal.print(FittingTable(table))
        for sentence in summary.sentences():
            console.say(sentence)
        for note in console.notes(found.pairing):
            console.say(f"note: {note}")
        if out is not None:
            console.say(f"table:   {out / 'cells.csv'}")
        for picture in pictures:
            console.say(f"picture: {picture}")
