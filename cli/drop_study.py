"""`deltalens drop-study`: how much of a fine-tune can be put back, and which part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import (
    Base,
    Debug,
    Exclude,
    Ft,
    Include,
    Json,
    Merge,
    Of,
    Quiet,
    Rescale,
    Scope,
)

if TYPE_CHECKING:
    from deltalens.io.records import StudyRecord


def drop_study(
    ft: Ft,
    base: Base,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="STUDY", help="The study's folder.")],
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
    data: Annotated[
        list[Path] | None,
        typer.Option(help="JSON lines with text, prompt/completion or messages; repeatable."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Keep only this metric (exact_match, loss, kl, ...); repeatable."),
    ] = None,
    answer_pattern: Annotated[
        str | None,
        typer.Option(metavar="RE", help="Finds the answer in a longer text; the model generates."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows taken of each data file.")] = None,
    fidelity_tokens: Annotated[
        int, typer.Option(help="Without data: tokens sampled per text, in 64 texts.")
    ] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (the checkpoint's), float32, bfloat16, float16.")
    ] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Positions in a batch.")] = 4096,
    include: Include = None,
    exclude: Exclude = None,
    merge_adapter: Merge = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard the study that the folder holds.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that FT brings.")
    ] = False,
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
        from deltalens.evaluate.rows import read_rows
        from deltalens.io.locate import located
        from deltalens.io.records import check_study_folder
        from deltalens.studies.drop_asked import FidelityTexts
        from deltalens.studies.drop_study import drop_study as run
        from deltalens.studies.study import StudyWatch
        from deltalens.studies.summary import summarise

        changed_only = console.changed_only(of)
        console.quieten()
        # Before anything is fetched or merged:
        check_study_folder(out, [Path(given) for given in (ft, base)])
        for path in data or ():
            read_rows(path, limit)
        with (
            located(ft, base, merge_adapter) as (ft_path, base_path),
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
                fidelity=FidelityTexts(new_tokens=fidelity_tokens),
                device=device,
                dtype=dtype,
                batch_tokens=batch_tokens,
                include=include,
                exclude=exclude,
                fresh=fresh,
                trust_remote_code=trust_remote_code,
                watch=StudyWatch(stage=meter.stage, advance=meter.advance),
            )
            meter.stage("drawing", None)
            pictures = _draw(record)
        console.show(summarise(record), record, pictures, as_json=as_json, quiet=quiet)


def _draw(record: StudyRecord) -> list[Path]:
    from deltalens.figures import draw

    return draw(record.path)
