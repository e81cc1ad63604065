"""`deltalens train`: a checkpoint, rows, a method; and a checkpoint comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltalens.cli import console
from deltalens.cli.options import (
    Accumulate,
    AccumulateMean,
    ApplyTo,
    BatchSize,
    Blocks,
    ChooseOn,
    CompletionField,
    Config,
    Data,
    Debug,
    Device,
    Dtype,
    Epochs,
    Exclude,
    Include,
    Json,
    LearningRate,
    Limit,
    MaxLength,
    MessagesField,
    Model,
    Modules,
    Objective,
    Out,
    PromptField,
    Quiet,
    Recipe,
    ScopeOfMethod,
    Steps,
    TextField,
    Threshold,
    fields,
    given_to,
    settings_of,
)

if TYPE_CHECKING:
    from deltalens.training.run import Trained

_DEFAULT_PROBE = {"every": 10}


def train(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="sft, gmt, random-mask, hft, mft, lora; or without a step random-mask-weights, "
            "l1-mask.",
        ),
    ],
    model: Model,
    data: Data,
    out: Out,
    objective: Objective = "sft",
    mask_ratio: Annotated[
        str | None,
        typer.Option(
            help="The fraction masked out: in each step (gmt, random-mask; 0.2 by default), or of "
            "the weights (mft and its baselines; 0.1, also by kind, projection and block: "
            "0.1,mlp=0.2,q=0.05,4-7.down=0.3)."
        ),
    ] = None,
    scope: ScopeOfMethod = None,
    apply_to: ApplyTo = None,
    include: Include = None,
    exclude: Exclude = None,
    blocks: Blocks = None,
    modules: Modules = None,
    complement: Annotated[
        bool,
        typer.Option(
            "--complement", help="random-mask-weights, l1-mask: remove 1 - ratio of the weights."
        ),
    ] = False,
    threshold: Threshold = None,
    rank_by: Annotated[
        str | None,
        typer.Option(
            metavar="magnitude|value",
            help="mft: what of the scores is ranked; magnitude by default.",
        ),
    ] = None,
    init_std: Annotated[
        float | None, typer.Option(help="mft: the scores begin as N(0, this); 0.02 by default.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="lora: of every linear layer; 64 by default.")
    ] = None,
    lora_alpha: Annotated[
        int | None, typer.Option(help="lora: its scale, times the rank; 16 by default.")
    ] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    accumulate_mean: AccumulateMean = "tokens",
    learning_rate: LearningRate = None,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the order of rows, and of random masks.")] = 0,
    max_length: MaxLength = None,
    loss_on: Annotated[
        str, typer.Option(metavar="completion|all", help="Which tokens count in the loss.")
    ] = "completion",
    prompt_field: PromptField = None,
    completion_field: CompletionField = None,
    messages_field: MessagesField = None,
    text_field: TextField = None,
    limit: Limit = None,
    eval_data: Annotated[
        list[Path] | None, typer.Option(help="Measured at the end; repeatable.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between measurements on the way.")
    ] = None,
    choose_on: ChooseOn = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints; a tenth by default.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Log the gradients every 10 steps, for monitor.")
    ] = False,
    config: Config = None,
    recipe: Recipe = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training that OUT holds.")
    ] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that MODEL brings.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model: plain fine-tuning, Gradient-Mask Tuning, Mask Fine-Tuning, and baselines.

    AdamW, cosine after 3 % warm-up, loss on the completion; --recipe mft-paper has MFT's settings.
    Ctrl-C writes a checkpoint; --resume goes on from the last one, bit for bit. Needs the extra
    [train].

    \b
    Example:
    deltalens train gmt base/ --data train.jsonl --mask-ratio 0.2 -o gmt/
    deltalens train sft base/ --data train.jsonl --eval-data test.jsonl --eval-every 50 -o sft/
    deltalens train mft ft/ --data train.jsonl --blocks 4-7 --mask-ratio 0.1 -o mft/
    """
    with console.command(debug, f"stopped; --resume goes on from {out}'s last checkpoint"):
        from deltalens.io.locate import locate
        from deltalens.training.following import TrainingWatch
        from deltalens.training.recipe import read_recipe
        from deltalens.training.run import train as run
        from deltalens.training.spec import TrainingSpec

        console.quieten()
        own = {
            "mask_ratio": mask_ratio,
            "scope": scope,
            "apply_to": apply_to,
            "include": include,
            "exclude": exclude,
            "blocks": blocks,
            "modules": modules,
            "complement": complement or None,
            "threshold": threshold,
            "rank_by": rank_by,
            "init_std": init_std,
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,
        }
        given = {
            **given_to([method], own),
            "epochs": epochs,
            "steps": steps,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "accumulate_mean": accumulate_mean,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "seed": seed,
            "max_length": max_length,
            "loss_on": loss_on,
            "gradient_checkpointing": gradient_checkpointing,
            "recipe": read_recipe(config, objective),
        }
        spec = TrainingSpec(
            method=method, objective=objective, **settings_of(recipe, [method], given)
        )
        with console.meter(quiet or as_json) as meter:
            trained = run(
                locate(model, trust_remote_code),
                data,
                out,
                spec,
                fields=fields(
                    prompt=prompt_field,
                    completion=completion_field,
                    messages=messages_field,
                    text=text_field,
                ),
                limit=limit,
                eval_data=eval_data or (),
                eval_every=eval_every,
                choose_on=choose_on,
                checkpoint_every=checkpoint_every,
                probe=_DEFAULT_PROBE if probe else None,
                resume=resume,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                watch=TrainingWatch(stage=meter.stage, at=meter.at, say=meter.say),
            )
        if not trained.finished:
            raise KeyboardInterrupt
        pictures: list[Path] = []
        if trained.masks and threshold is not None:
            from deltalens.figures import draw

            pictures = [path for path in draw(trained.path) if path.suffix == ".png"]
        _show(trained, pictures, as_json=as_json, quiet=quiet)


def _show(trained: Trained, pictures: list[Path], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        found: dict[str, Any] = {
            "out": str(trained.path),
            "steps": trained.steps,
            "seconds": trained.seconds,
            "loss": trained.loss,
            "metrics": {name: list(m) for name, m in trained.metrics.items()},
            "notes": list(trained.notes),
            "masks": str(trained.masks) if trained.masks else None,
            "run": str(trained.run) if trained.run else None,
            "pictures": [str(picture) for picture in pictures],
        }
        console.print_json(found)
        return
    if quiet:
        return
    if trained.steps:
        took = f"{trained.steps:,} steps in {trained.seconds:,.1f} s"
        console.say(took)
        said = f"{trained.loss:.4f} ({trained.loss_unit})"
        console.say(f"mean training loss over the last 10 % of steps: {said}")
    for name, measured in trained.metrics.items():
        console.say(f"{name}: {measured.value:.4g} (n = {measured.n:,})")
    for note in trained.notes:
        console.say(f"note: {note}")
    console.say(f"model:   {trained.path}")
    if trained.masks:
        console.say(f"masks:   {trained.masks}")
    for picture in pictures:
        console.say(f"drawn:   {picture}")
    if trained.run:
        console.say(f"run:     {trained.run}  (deltalens monitor {trained.run})")
