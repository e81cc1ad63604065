"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Accumulate",
    "AccumulateMean",
    "AnswerPattern",
    "ApplyTo",
    "Base",
    "BatchSize",
    "BatchTokens",
    "Blocks",
    "CellJobs",
    "ChooseOn",
    "CompletionField",
    "Config",
    "Data",
    "Debug",
    "Device",
    "Dtype",
    "Epochs",
    "EvalData",
    "Exclude",
    "Executor",
    "FidelityTokens",
    "Fresh",
    "Ft",
    "Include",
    "Jobs",
    "Json",
    "KeepCheckpoints",
    "LearningRate",
    "Limit",
    "MaxLength",
    "Measured",
    "Merge",
    "MessagesField",
    "Metric",
    "Model",
    "Modules",
    "Objective",
    "Of",
    "Out",
    "PromptField",
    "Quiet",
    "Recipe",
    "Rescale",
    "Scope",
    "ScopeOfMethod",
    "ScoreRate",
    "Seed",
    "Seeds",
    "Steps",
    "Strict",
    "Study",
    "StudyDtype",
    "TextField",
    "Threshold",
    "TrustFt",
    "fields",
    "given_to",
    "settings_of",
]

_ROWS = (
    "JSON lines or a JSON array (also packed with gzip), Parquet, or a saved data set's folder, "
    "with text, prompt/completion, messages, or prompt/chosen/rejected."
)
"""What commands take as rows."""

Ft = Annotated[
    str, typer.Argument(metavar="FT", help="The fine-tune: a folder, a file, or org/name[@rev].")
]
Base = Annotated[str, typer.Argument(metavar="BASE", help="The base it was tuned from: likewise.")]
Out = Annotated[
    Path, typer.Option("-o", "--out", metavar="OUT", help="The folder to write; it must be new.")
]
Scope = Annotated[str, typer.Option(metavar="tensor|layer|global", help="What is ranked together.")]
ScopeOfMethod = Annotated[
    str | None,
    typer.Option(
        metavar="tensor|layer|global", help="gmt: what is ranked together; tensor by default."
    ),
]
ApplyTo = Annotated[
    str | None,
    typer.Option(
        metavar="gradient|update",
        help="gmt, random-mask: what is masked; gradient by default. update: masked weights stay "
        "as they are.",
    ),
]
Include = Annotated[
    str | None, typer.Option(metavar="RE", help="Only tensors whose name this finds.")
]
Exclude = Annotated[
    str | None, typer.Option(metavar="RE", help="All tensors but those whose name this finds.")
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse tensors that one checkpoint has and another lacks."),
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

Measured = Annotated[
    list[Path] | None,
    typer.Option(metavar="F", help=f"What is measured on; repeatable. {_ROWS}"),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(help="Keep only this metric (loss, exact_match, kl, ...); repeatable."),
]
AnswerPattern = Annotated[
    str | None,
    typer.Option(metavar="RE", help="Finds the answer in a longer text; the model generates."),
]
FidelityTokens = Annotated[
    int, typer.Option(help="Without data: tokens sampled per text, in 64 texts.")
]
BatchTokens = Annotated[int, typer.Option(help="Positions in a batch.")]
StudyDtype = Annotated[
    str, typer.Option(help="auto (the checkpoint's), float32, bfloat16, float16.")
]
TrustFt = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code that FT brings.")
]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or org/name[@rev].")]
Data = Annotated[
    Path,
    typer.Option(
        metavar="F",
        help=f"What is trained on. {_ROWS}",
    ),
]
EvalData = Annotated[list[Path], typer.Option(metavar="G", help="What is measured on; repeatable.")]
Study = Annotated[Path, typer.Option("-o", "--out", metavar="STUDY", help="The study's folder.")]
Objective = Annotated[str, typer.Option(metavar="sft|dpo", help="dpo: rows are preferences.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the rows; 1 by default.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows in a micro-batch; 8 by default.")]
Accumulate = Annotated[int | None, typer.Option(help="Micro-batches in a step; 1 by default.")]
AccumulateMean = Annotated[
    str,
    typer.Option(
        metavar="tokens|batch",
        help="A step's loss is the mean over its tokens, or over its micro-batches' means.",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", "--lr", help="Peak learning rate; 2e-5 by default."),
]
MaxLength = Annotated[
    int | None, typer.Option(help="Longest row in tokens; the model's positions by default.")
]
ScoreRate = Annotated[
    float | None, typer.Option("--score-lr", help="Peak, of mft's scores; the same by default.")
]
Blocks = Annotated[
    str | None,
    typer.Option(
        metavar="all|4-7,12",
        help="Whose weights are masked (mft and its baselines); all by default.",
    ),
]
Modules = Annotated[
    str | None,
    typer.Option(
        metavar="attention,mlp", help="Which of a block's layers are masked; both by default."
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="mft: scores at or below it lose their weights, instead of a mask ratio."),
]
ChooseOn = Annotated[
    Path | None,
    typer.Option(metavar="V", help="Rows whose loss decides which moment of a training comes out."),
]
PromptField = Annotated[str | None, typer.Option(help="What the data files call the prompt.")]
CompletionField = Annotated[
    str | None, typer.Option(help="What the data files call the completion.")
]
MessagesField = Annotated[str | None, typer.Option(help="What the data files call the messages.")]
TextField = Annotated[str | None, typer.Option(help="What the data files call the text.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows taken of each file of --data.")]
Config = Annotated[
    Path | None, typer.Option(metavar="YAML", help="Further options of trl's configuration.")
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="mft-paper[:MODEL[:DOMAIN]]",
        help="MFT's settings where none are given; MODEL llama2-7b or llama3.1-8b, DOMAIN maths, "
        "code or instructions.",
    ),
]
Seeds = Annotated[int, typer.Option(help="Trainings at each point.")]
Jobs = Annotated[
    int, typer.Option(min=1, help="Trainings at once; each has its share of the threads.")
]
CellJobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        min=1,
        help="Cells measured at once, each in a process with a model of its own; the same numbers.",
    ),
]
Executor = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Who measures: sequential, processes (where there are several jobs), or an installed "
        "package's.",
    ),
]
KeepCheckpoints = Annotated[
    bool, typer.Option("--keep-checkpoints", help="Keep every trained model.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str, typer.Option(help="auto (the checkpoint's; float32 on a CPU), float32, bfloat16.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard the study that the folder holds.")]


def fields(**named: str | None) -> dict[str, str]:
    """What the data files call the fields, where it is not as we do."""
    return {ours: there for ours, there in named.items() if there is not None}


def settings_of(
    recipe: str | None, methods: Sequence[str], given: dict[str, Any], swept: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings of a training: those given, and a named recipe's where they are not.

    Args:
        recipe: its name, if one was given.
        methods: that train with them.
        given: of the options; None: not given.
        swept: settings that a study goes through.

    Raises:
        DeltaLensError: no such recipe, or one that says nothing of a method.
    """
    if recipe is not None:
        from deltalens.training.paper import paper_settings

        return paper_settings(recipe, methods, given, swept)
    return {name: value for name, value in given.items() if value is not None}


def given_to(
    methods: Sequence[str], own: dict[str, Any], swept: dict[str, str] | None = None
) -> dict[str, Any]:
    """The options that only some training methods have, after a look whether these have them.

    Args:
        methods: that are asked for.
        own: the options of the command; None: not given.
        swept: what a study goes through, and the option that says so.

    Raises:
        DeltaLensError: names the options that no method has, and those that they have.
    """
    from deltalens.training.spec import check_own

    given = [name for name, value in own.items() if value is not None]
    check_own(methods, given, swept=swept, show=_flag, offered=own)
    return own


def _flag(option: str) -> str:
    return "--score-lr" if option == "score_learning_rate" else f"--{option.replace('_', '-')}"
