"""`deltalens efficiency`: what a method costs a training."""

from __future__ import annotations

from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import (
    CompletionField,
    Data,
    Debug,
    Device,
    Dtype,
    Fresh,
    Json,
    Limit,
    MaxLength,
    MessagesField,
    Model,
    PromptField,
    Quiet,
    ScopeOfMethod,
    Study,
    TextField,
    fields,
    given_to,
)


def efficiency(
    model: Model,
    data: Data,
    out: Study,
    methods: Annotated[
        str, typer.Option(help="Of sft, random-mask, gmt and hft.")
    ] = "sft,random-mask,gmt",
    mask_ratio: Annotated[
        str | None, typer.Option(help="The fraction masked out; 0.2 by default.")
    ] = None,
    scope: ScopeOfMethod = None,
    batch_size: Annotated[int, typer.Option(help="Rows in a micro-batch.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Micro-batches in a step.")] = 1,
    repeats: Annotated[int, typer.Option(help="Blocks of each method; they take turns.")] = 7,
    steps: Annotated[int, typer.Option(help="Steps in a block.")] = 5,
    prompt_field: PromptField = None,
    completion_field: CompletionField = None,
    messages_field: MessagesField = None,
    text_field: TextField = None,
    limit: Limit = None,
    max_length: MaxLength = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fresh: Fresh = False,
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
        from deltalens.figures import draw
        from deltalens.io.locate import locate
        from deltalens.studies.efficiency import efficiency as run
        from deltalens.studies.engine import StudyWatch
        from deltalens.training.spec import TrainingSpec

        console.quieten()
        names = [name.strip() for name in methods.split(",")]
        spec = TrainingSpec(
            **given_to(names, {"mask_ratio": mask_ratio, "scope": scope}),
            batch_size=batch_size,
            accumulate=accumulate,
            max_length=max_length,
        )
        with console.meter(quiet or as_json) as meter:
            record = run(
                locate(model),
                data,
                out,
                spec,
                methods=names,
                repeats=repeats,
                steps=steps,
                fields=fields(
                    prompt=prompt_field,
                    completion=completion_field,
                    messages=messages_field,
                    text=text_field,
                ),
                limit=limit,
                device=device,
                dtype=dtype,
                fresh=fresh,
                watch=StudyWatch(stage=meter.stage, advance=meter.advance),
            )
            meter.stage("drawing", None)
            pictures = draw(record.path)
        console.show(record, pictures, as_json=as_json, quiet=quiet)
