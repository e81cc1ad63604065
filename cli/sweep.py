"""`deltalens sweep`: one training after another, over one setting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import (
    Accumulate,
    BatchSize,
    CompletionField,
    Config,
    Data,
    Debug,
    Device,
    Dtype,
    Epochs,
    EvalData,
    Fresh,
    Jobs,
    Json,
    KeepCheckpoints,
    LearningRate,
    Limit,
    Model,
    Objective,
    PromptField,
    Quiet,
    Scope,
    Seeds,
    Steps,
    Study,
    fields,
)

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
    model: Model,
    data: Data,
    eval_data: EvalData,
    out: Study,
    ratios: Annotated[
        str, typer.Option(help="start:stop:step and single ones; 0 is always among them.")
    ] = "0:0.9:0.1,0.95,0.99",
    seeds: Seeds = 3,
    objective: Objective = "sft",
    scope: Scope = "tensor",
    epochs: Epochs = 1.0,
    steps: Steps = None,
    batch_size: BatchSize = 8,
    accumulate: Accumulate = 1,
    learning_rate: LearningRate = 2e-5,
    prompt_field: PromptField = None,
    completion_field: CompletionField = None,
    limit: Limit = None,
    config: Config = None,
    jobs: Jobs = 1,
    keep_checkpoints: KeepCheckpoints = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fresh: Fresh = False,
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
        from deltalens.studies.trainings import TrainingData
        from deltalens.training.asked import TrainingAsked, read_recipe

        console.quieten()
        asked = TrainingAsked(
            objective=objective,
            scope=scope,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            recipe=read_recipe(config, objective),
        )
        with console.meter(quiet or as_json) as meter:
            record = sweep_mask_ratio(
                [name.strip() for name in methods.split(",")],
                TrainingData(
                    model=locate(model),
                    data=data,
                    eval_data=eval_data,
                    fields=fields(prompt_field, completion_field),
                    limit=limit,
                    device=device,
                    dtype=dtype,
                ),
                out,
                asked,
                ratios=ratios,
                seeds=seeds,
                keep_checkpoints=keep_checkpoints,
                jobs=jobs,
                fresh=fresh,
                watch=StudyWatch(stage=meter.stage, advance=meter.advance, within=meter.within),
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
