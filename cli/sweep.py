"""`deltalens sweep`: one training after another, over one setting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import Debug, Json, Quiet, Scope

if TYPE_CHECKING:
    from deltalens.io.records import StudyRecord

app = typer.Typer(help="Train over and over along one setting, and draw what comes of it.")


@app.callback()
def root() -> None:
    """Train over and over along one setting, and draw what comes of it."""


@app.command("mask-ratio")
def mask_ratio(
    methods: Annotated[
        str,
        typer.Argument(
            metavar="METHODS", help="Of gmt, random-mask, one-off-drop and hft; with commas."
        ),
    ],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or org/name[@rev].")],
    data: Annotated[Path, typer.Option(metavar="F", help="What is trained on, as for train.")],
    eval_data: Annotated[
        list[Path], typer.Option(metavar="G", help="What is measured on; repeatable.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="STUDY", help="The study's folder.")],
    ratios: Annotated[
        str, typer.Option(help="start:stop:step and single ones; 0 is always among them.")
    ] = "0:0.9:0.1,0.95,0.99",
    seeds: Annotated[int, typer.Option(help="Trainings at each ratio.")] = 3,
    scope: Scope = "tensor",
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows in a micro-batch.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Micro-batches in a step.")] = 1,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", help="Peak.")] = 2e-5,
    prompt_field: Annotated[
        str | None, typer.Option(help="What the data calls the prompt.")
    ] = None,
    completion_field: Annotated[
        str | None, typer.Option(help="What the data calls the completion.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows taken of the data.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Further options of trl's configuration.")
    ] = None,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Keep every trained model.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="As for train.")] = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard the study that the folder holds.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train at growing mask ratios, beside plain fine-tuning, and draw GMT's Figure 2.

    The same command again goes on where it stopped.

    \b
    Example:
    deltalens sweep mask-ratio gmt base/ --data train.jsonl --eval-data test.jsonl -o study/
    """
    with console.command(
        debug, f"stopped; finished trainings are kept in {out}, the same command goes on"
    ):
        from deltalens.figures import draw
        from deltalens.io.locate import locate
        from deltalens.studies.mask_ratio import sweep_mask_ratio
        from deltalens.studies.study import StudyWatch
        from deltalens.training.asked import TrainingAsked, read_recipe

        console.quieten()
        asked = TrainingAsked(
            scope=scope,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            recipe=read_recipe(config, "sft"),
        )
        fields = {"prompt": prompt_field, "completion": completion_field}
        with console.meter(quiet or as_json) as meter:
            record = sweep_mask_ratio(
                [name.strip() for name in methods.split(",")],
                locate(model),
                data,
                eval_data,
                out,
                asked,
                ratios=ratios,
                seeds=seeds,
                fields={name: there for name, there in fields.items() if there},
                limit=limit,
                keep_checkpoints=keep_checkpoints,
                device=device,
                dtype=dtype,
                fresh=fresh,
                watch=StudyWatch(stage=meter.stage, advance=meter.advance),
            )
            meter.stage("drawing", None)
            pictures = draw(record.path)
        show(record, pictures, as_json=as_json, quiet=quiet)


def show(record: StudyRecord, pictures: list[Path], *, as_json: bool, quiet: bool) -> None:
    """The summary, as text with a table or as JSON."""
    from deltalens.studies.sweep_summary import summarise_sweep

    summary = summarise_sweep(record)
    if as_json:
        console.print_json({**summary.as_json(), "pictures": [str(path) for path in pictures]})
        return
    if quiet:
        return
    terminal = console.console()
    for table in summary.tables():
        terminal.print(console.grid(table))
    for sentence in summary.sentences():
        typer.echo(sentence)
    typer.echo(f"table:   {record.path / 'cells.csv'}")
    for picture in pictures:
        typer.echo(f"picture: {picture}")
