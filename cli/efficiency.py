"""`deltalens efficiency`: what a method costs a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import Debug, Json, Quiet, Scope


def efficiency(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or org/name[@rev].")],
    data: Annotated[Path, typer.Option(metavar="F", help="Rows to train on, as for train.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="STUDY", help="The study's folder.")],
    methods: Annotated[
        str, typer.Option(help="Of sft, random-mask, gmt and hft.")
    ] = "sft,random-mask,gmt",
    mask_ratio: Annotated[str, typer.Option(help="The fraction masked out.")] = "0.2",
    scope: Scope = "tensor",
    batch_size: Annotated[int, typer.Option(help="Rows in a micro-batch.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Micro-batches in a step.")] = 1,
    repeats: Annotated[int, typer.Option(help="Blocks of each method; they take turns.")] = 7,
    steps: Annotated[int, typer.Option(help="Steps in a block.")] = 5,
    prompt_field: Annotated[
        str | None, typer.Option(help="What the data calls the prompt.")
    ] = None,
    completion_field: Annotated[
        str | None, typer.Option(help="What the data calls the completion.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows taken of the data.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="As for train.")] = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard the study that the folder holds.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare the speed, FLOPs and memory of training methods, as in GMT's Table 3.

    \b
    Example:
    deltalens efficiency base/ --data train.jsonl -o efficiency/
    """
    with console.command(debug, f"stopped; finished blocks are kept in {out}"):
        from deltalens.io.locate import locate
        from deltalens.studies.efficiency import efficiency as run
        from deltalens.studies.efficiency_summary import summarise_efficiency
        from deltalens.studies.study import StudyWatch
        from deltalens.training.asked import TrainingAsked

        console.quieten()
        fields = {"prompt": prompt_field, "completion": completion_field}
        asked = TrainingAsked(
            mask_ratio=mask_ratio,
            scope=scope,
            batch_size=batch_size,
            accumulate=accumulate,
            max_length=max_length,
        )
        with console.meter(quiet or as_json) as meter:
            record = run(
                locate(model),
                data,
                out,
                asked,
                methods=[name.strip() for name in methods.split(",")],
                repeats=repeats,
                steps=steps,
                fields={name: there for name, there in fields.items() if there},
                limit=limit,
                device=device,
                dtype=dtype,
                fresh=fresh,
                watch=StudyWatch(stage=meter.stage, advance=meter.advance),
            )
        summary = summarise_efficiency(record)
        if as_json:
            console.print_json(summary.as_json())
        elif not quiet:
            console.console().print(console.grid(summary.table()))
            for sentence in summary.sentences():
                typer.echo(sentence)
            typer.echo(f"table:   {record.path / 'cells.csv'}")
