"""`deltalens landscape`: the loss on a line or plane through weight space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import (
    AnswerPattern,
    BatchTokens,
    CellJobs,
    CompletionField,
    Debug,
    Device,
    Exclude,
    Executor,
    Fresh,
    Include,
    Json,
    Limit,
    Measured,
    MessagesField,
    Metric,
    PromptField,
    Quiet,
    Strict,
    Study,
    TextField,
    fields,
)

if TYPE_CHECKING:
    from deltalens.io.records import Cell, StudyRecord


def landscape(
    origin: Annotated[
        str, typer.Argument(metavar="ORIGIN", help="The model in question: a folder, or org/name.")
    ],
    out: Study,
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[B [C]]",
            help="Models that span the line or plane with it; for a trajectory the run's folder.",
        ),
    ] = None,
    data: Measured = None,
    grid: Annotated[
        str | None, typer.Option(help="Points: 25x25 for a plane, 51 for a line.")
    ] = None,
    plane: Annotated[
        str,
        typer.Option(
            metavar="checkpoints|line|random|trajectory|hessian",
            help="What the plane goes through; auto goes by how many models are given.",
        ),
    ] = "auto",
    span: Annotated[
        str | None,
        typer.Option(help="Where the axes begin and end: low:high, or one for each with a comma."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="A further model, projected onto the plane and marked.")
    ] = None,
    normalize: Annotated[
        str, typer.Option(metavar="filter|layer|model", help="Of random directions.")
    ] = "filter",
    seed: Annotated[int, typer.Option(help="Of random directions, and of Lanczos.")] = 0,
    metric: Metric = None,
    answer_pattern: AnswerPattern = None,
    limit: Limit = None,
    prompt_field: PromptField = None,
    completion_field: CompletionField = None,
    messages_field: MessagesField = None,
    text_field: TextField = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Hold no direction; slower, the same numbers.")
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (float32), bfloat16, float16, float64.")
    ] = "auto",
    batch_tokens: BatchTokens = 4096,
    include: Include = None,
    exclude: Exclude = None,
    strict: Strict = False,
    jobs: CellJobs = 1,
    executor: Executor = None,
    fresh: Fresh = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that ORIGIN brings.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Scan the loss around a model, on a line or plane through other models, and draw it.

    A first picture of the whole plane appears early and sharpens. The same command again goes on
    where it stopped.

    \b
    Example:
    deltalens landscape ft/ continued/ mft/ --data train.jsonl --data test.jsonl -o study/
    deltalens landscape ft/ other/ --data test.jsonl --grid 51 -o line/
    deltalens landscape ft/ --plane hessian --data test.jsonl --limit 64 -o sharpness/
    """
    kept = f"stopped; finished points are kept in {out}, the same command goes on"
    with console.command(debug, kept):
        from deltalens.io.locate import locate
        from deltalens.io.records import check_study_folder
        from deltalens.scoring.rows import read_files
        from deltalens.studies.engine import StudyWatch
        from deltalens.studies.landscape.scan import scan_landscape

        given = [*(others or ()), *([base] if base else ())]
        console.quieten()
        # Before anything is fetched:
        check_study_folder(out, [Path(model) for model in (origin, *given)])
        named = fields(
            prompt=prompt_field,
            completion=completion_field,
            messages=messages_field,
            text=text_field,
        )
        read_files(data or (), limit, named)
        between = [locate(model, trust_remote_code) for model in others or ()]
        with console.meter(quiet or as_json) as meter:
            record = scan_landscape(
                locate(origin, trust_remote_code),
                out,
                others=between,
                base=locate(base, trust_remote_code) if base else None,
                plane=plane,
                grid=grid,
                span=span,
                normalize=normalize,
                seed=seed,
                data=data or (),
                metrics=metric or (),
                answer_pattern=answer_pattern,
                limit=limit,
                fields=named,
                low_memory=low_memory,
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
                watch=StudyWatch(
                    stage=meter.stage,
                    advance=meter.advance,
                    within=meter.within,
                    on_cell=_Sketches().on_cell,
                ),
            )
            meter.stage("drawing", None)
            pictures = _draw(record.path)
        console.show(record, pictures, as_json=as_json, quiet=quiet)


class _Sketches:
    """Draws the study each time that a level of the grid is complete: the plane as a whole after
    the first few points, then twice as fine each time."""

    def __init__(self) -> None:
        self._due: list[int] | None = None
        self._done = 0

    def on_cell(self, folder: Path, cell: Cell) -> None:
        """A cell is journalled."""
        from deltalens.io.records import load_study

        if self._due is None:
            record = load_study(folder)
            kept = record.cells.drop_duplicates(["a", "b", "mark", "data"])
            self._due, self._done = _levels_end(record), len(kept) - 1
        self._done += 1
        if self._due and self._done >= self._due[0]:
            self._due = [end for end in self._due if end > self._done]
            if self._due:
                from deltalens.figures import draw_named, save_all

                save_all(draw_named("landscape", folder, first_only=True), folder)


def _levels_end(record: StudyRecord) -> list[int]:
    """How many journal lines each level of the grid ends with; the coarsest is no picture yet."""
    from itertools import accumulate

    from deltalens.studies.landscape.grid import levels

    sizes = [len(level) for level in levels(record.spec["grid"])]
    marks, sets = len(record.facts["plane"]["marks"]), len(record.facts["data"])
    return [(marks + end) * sets for end in list(accumulate(sizes))[1:]]


def _draw(folder: Path) -> list[Path]:
    from deltalens.figures import draw

    return draw(folder)
