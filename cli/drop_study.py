"""`deltalens drop-study`: how much of a fine-tune can be put back, and which part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Of,
    PromptField,
    Quiet,
    Rescale,
    Scope,
    Strict,
    Study,
    StudyDtype,
    TextField,
    TrustFt,
    fields,
)

if TYPE_CHECKING:
    from deltalens.io.records import StudyRecord


def drop_study(
    ft: Ft,
    base: Base,
    out: Study,
    strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="salient|trivial|random", help="Repeatable; all three if not given."),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="start:stop:step, or a list; 0 and 1 are always measured.")
    ] = "0:1:0.1",
    scope: Scope = "tensor",
    seeds: Annotated[int, typer.Option(help="How many random orders.")] = 3,
    rescale: Rescale = False,
    of: Of = "all",
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
    merge_adapter: Merge = False,
    jobs: CellJobs = 1,
    executor: Executor = None,
    fresh: Fresh = False,
    trust_remote_code: TrustFt = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put back growing shares of a fine-tune's delta, and measure what is left of it.

    One model is edited in place for every cell. Without --data, fidelity to the fine-tune is
    measured on texts that it writes itself. The same command again goes on where it stopped.

    \b
    Example:
    deltalens drop-study ft/ base/ -o study/
    deltalens drop-study ft/ base/ --data test.jsonl --rates 0:1:0.1 -o study/
    """
    with console.command(
        debug, f"stopped; finished cells are kept in {out}, the same command goes on"
    ):
        from deltalens.io.locate import located
        from deltalens.io.records import check_study_folder
        from deltalens.scoring.rows import read_files
        from deltalens.scoring.texts import FidelityTexts
        from deltalens.studies.drop_study import drop_study as run
        from deltalens.studies.engine import StudyWatch

        changed_only = console.changed_only(of)
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
            record = run(
                ft_path,
                base_path,
                out,
                strategies=strategy or ("salient", "trivial", "random"),
                rates=rates,
                scope=scope,
                seeds=seeds,
                rescale=rescale,
                changed_only=changed_only,
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
                jobs=jobs,
                executor=executor,
                fresh=fresh,
                trust_remote_code=trust_remote_code,
                watch=StudyWatch(stage=meter.stage, advance=meter.advance, within=meter.within),
            )
            meter.stage("drawing", None)
            pictures = _draw(record)
        console.show(record, pictures, as_json=as_json, quiet=quiet)


def _draw(record: StudyRecord) -> list[Path]:
    from deltalens.figures import draw

    return draw(record.path)
