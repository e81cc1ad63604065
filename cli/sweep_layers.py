"""`deltalens sweep layers`: which blocks matter, group by group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import (
    AnswerPattern,
    Base,
    BatchTokens,
    CellJobs,
    CompletionField,
    Debug,
    Device,
    Exclude,
    Executor,
    FidelityTokens,
    Fresh,
    Ft,
    Include,
    Json,
    Limit,
    Measured,
    Merge,
    MessagesField,
    Metric,
    PromptField,
    Quiet,
    Strict,
    Study,
    StudyDtype,
    TextField,
    TrustFt,
    fields,
)

app = typer.Typer(help="Go through the blocks of a model, group by group: which ones matter?")


@app.callback()
def root() -> None:
    """Go through the blocks of a model, group by group: which ones matter?"""


@app.command("drop")
def layers_drop(
    ft: Ft,
    base: Base,
    out: Study,
    group: Annotated[
        list[int] | None,
        typer.Option(help="Blocks in a group; repeatable; 1 if not given."),
    ] = None,
    data: Measured = None,
    metric: Metric = None,
    answer_pattern: AnswerPattern = None,
    limit: Limit = None,
    prompt_field: PromptField = None,
    completion_field: CompletionField = None,
    messages_field: MessagesField = None,
    text_field: TextField = None,
    fidelity_tokens: FidelityTokens = 128,
    device: Device = "auto",
    dtype: StudyDtype = "auto",
    batch_tokens: BatchTokens = 4096,
    include: Include = None,
    exclude: Exclude = None,
    strict: Strict = False,
    cache_gb: Annotated[
        float,
        typer.Option(
            help="Host memory for what enters the first block that differs: it spares the blocks "
            "before. 0: compute them again in every cell."
        ),
    ] = 4.0,
    merge_adapter: Merge = False,
    jobs: CellJobs = 1,
    executor: Executor = None,
    fresh: Fresh = False,
    trust_remote_code: TrustFt = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put each group's delta back, and keep each group's alone: which blocks carry the fine-tune?

    Nothing is trained. What is in no block keeps its delta in the one, and is the base's in the
    other. Without --data, fidelity to the fine-tune is measured. The same command again goes on
    where it stopped.

    \b
    Example:
    deltalens sweep layers drop ft/ base/ --data test.jsonl --group 1 --group 4 -o study/
    """
    with console.command(
        debug, f"stopped; finished cells are kept in {out}, the same command goes on"
    ):
        from deltalens.figures import draw
        from deltalens.io.locate import located
        from deltalens.io.records import check_study_folder
        from deltalens.scoring.rows import read_files
        from deltalens.scoring.texts import FidelityTexts
        from deltalens.studies.engine import StudyWatch
        from deltalens.studies.layer_drop import sweep_layers_drop

        console.quieten()
        # Before anything is fetched or merged:
        check_study_folder(out, [Path(given) for given in (ft, base)])
        named = fields(
            prompt=prompt_field,
            completion=completion_field,
            messages=messages_field,
            text=text_field,
        )
        read_files(data or (), limit, named)
        with (
            located(ft, base, merge_adapter, trust_remote_code) as (ft_path, base_path),
            console.meter(quiet or as_json) as meter,
        ):
            record = sweep_layers_drop(
                ft_path,
                base_path,
                out,
                groups=group or (1,),
                data=data or (),
                metrics=metric or (),
                answer_pattern=answer_pattern,
                limit=limit,
                fields=named,
                fidelity=FidelityTexts(new_tokens=fidelity_tokens),
                device=device,
                dtype=dtype,
                batch_tokens=batch_tokens,
                include=include,
                exclude=exclude,
                strict=strict,
                cache_gb=cache_gb,
                jobs=jobs,
                executor=executor,
                fresh=fresh,
                trust_remote_code=trust_remote_code,
                watch=StudyWatch(stage=meter.stage, advance=meter.advance, within=meter.within),
            )
            meter.stage("drawing", None)
            pictures = draw(record.path)
        console.show(record, pictures, as_json=as_json, quiet=quiet)
