"""Training by a method, and studies whose cells are trainings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from deltalens.api.described import Arg, Opt, described
from deltalens.api.options import (
    EfficiencyOptions,
    EvalData,
    Methods,
    Model,
    Names,
    NewFolder,
    StudyFolder,
    TrainData,
    TrainingOptions,
)
from deltalens.api.translate import field_names, learning_rates, names, paths, training
from deltalens.errors import DeltaLensError
from deltalens.training.methods import Method

if TYPE_CHECKING:
    from deltalens.api.results import Study, Training

__all__ = ["efficiency", "train"]


@described
def train(
    method: Annotated[str | Method, Arg("METHOD", "The method; deltalens methods lists them.")],
    model: Model,
    train_data: TrainData,
    out: NewFolder,
    *,
    eval_data: EvalData = (),
    seed: Annotated[int, Opt("Seed of row order, random masks and a new head.", common=True)] = 0,
    checkpoint_every: Annotated[
        int | None, Opt("Steps between checkpoints (a tenth).", minimum=1)
    ] = None,
    keep_checkpoints: Annotated[
        bool, Opt("Keep each as a plain model, OUT/checkpoint-STEP.")
    ] = False,
    probe: Annotated[bool, Opt("Log the gradients, for deltalens monitor.", common=True)] = False,
    probe_every: Annotated[int, Opt("Steps between the probe's logs.", minimum=1)] = 10,
    resume: Annotated[bool, Opt("Go on with the training in OUT.", common=True)] = False,
    report_to: Annotated[Names, Opt("Trackers: tensorboard,wandb, ...", metavar="NAMES")] = (),
    settings: Annotated[
        Mapping[str, Any] | None, Opt("Of the method, by name.", python_only=True)
    ] = None,
    **options: Unpack[TrainingOptions],
) -> Training:
    """Train a checkpoint on rows by a method, and write the result as an ordinary checkpoint.

    AdamW, cosine after 3 % warm-up, loss on the completion. An interrupted training writes a
    checkpoint first; with `resume` the same call goes on from there, bit for bit.

    Args:
        method: its name, or a `deltalens.training.methods.Method` with its settings.
        model: a checkpoint folder or hub id.
        train_data: rows with `text`, `prompt` and `completion`, `messages`; `prompt`, `chosen` and
            `rejected` for DPO; or sentences and a `label` for classification or regression.
        out: the folder to write; new, unless `resume`.
        eval_data: measured at the end, and every `eval_every` steps.
        seed: decides the order of the rows, and whatever the method draws at random.
        checkpoint_every: steps between checkpoints; a tenth of the training if None.
        keep_checkpoints: keep each of them as an ordinary model, `checkpoint-STEP` in `out`: masks,
            sparse values and adapters merged. `deltalens.evaluate` takes them.
        probe: log the gradients into the folder's run (`GradientProbe`).
        probe_every: steps between two logs.
        resume: go on with the training that `out` holds.
        report_to: trackers of transformers that get the loss and the metrics.
        settings: the method's own, where `method` is a name: {"mask_ratio": 0.2}.

    Returns:
        The training.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
        KeyboardInterrupt: it was interrupted; the last checkpoint is there.

    Example:
        >>> training = deltalens.train(
        ...     "gmt", "base", "train.jsonl", "new-gmt", settings={"mask_ratio": 0.2},
        ...     steps=2, train_limit=32, eval_data="test.jsonl", max_length=64,
        ... )
        >>> training.method, training.steps
        ('gmt', 2)
    """
    from deltalens.api.results import Training
    from deltalens.io.locate import locate
    from deltalens.training.run import train as run

    if len(rates := learning_rates(options.get("learning_rate"))) > 1:
        raise DeltaLensError(
            f"learning_rate {','.join(f'{rate:g}' for rate in rates)}: a training has one; studies "
            "take a grid"
        )
    methods, spec = training(method, options, settings or {})
    if len(methods) != 1:
        raise DeltaLensError(f"method {method!r}: a training has one")
    (chosen,) = methods
    trust = bool(options.get("trust_remote_code"))
    trained = run(
        locate(str(model), trust),
        train_data,
        out,
        spec.of(chosen, seed),
        fields=field_names(options),
        limit=options.get("train_limit"),
        eval_data=paths(eval_data),
        eval_every=options.get("eval_every"),
        choose_on=options.get("choose_on"),
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        probe={"every": probe_every} if probe else None,
        resume=resume,
        report_to=names(report_to),
        device=options.get("device") or "auto",
        dtype=options.get("dtype") or "auto",
        trust_remote_code=trust,
        watch=options.get("watch"),
    )
    if not trained.finished:
        raise KeyboardInterrupt
    return Training(
        path=trained.path,
        method=chosen.name,
        steps=trained.steps,
        seconds=trained.seconds,
        loss=trained.loss,
        loss_unit=trained.loss_unit,
        metrics={name: (m.value, m.stderr, m.n) for name, m in trained.metrics.items()},
        notes=trained.notes,
        run=trained.run,
        masks=trained.masks,
        adapter=trained.adapter,
        costs=trained.costs,
    )


@described
def efficiency(
    methods: Methods,
    model: Model,
    train_data: TrainData,
    out: StudyFolder,
    *,
    repeats: Annotated[int, Opt("Blocks of each method; they take turns.", common=True)] = 7,
    block_steps: Annotated[int, Opt("Steps in a block.", common=True)] = 5,
    **options: Unpack[EfficiencyOptions],
) -> Study:
    """Compare the speed, FLOPs and memory of training methods (GMT, Table 3).

    One model trains throughout, on batches of one size, in short blocks of one method after the
    other; plain fine-tuning is always among them.

    Args:
        methods: `gmt`, `random-mask`, `hft`, `sft`; or a package's that masks gradients.
        model: a checkpoint folder or hub id.
        train_data: rows to train on.
        out: the study's folder.
        repeats: blocks of each method.
        block_steps: optimizer steps in a block.

    Returns:
        The study; its `cells` have the columns method, repeat, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, before the model is loaded.

    Example:
        >>> study = deltalens.efficiency(
        ...     "gmt", "base", "train.jsonl", "new-efficiency", repeats=1, block_steps=1,
        ...     train_limit=32,
        ... )
        >>> "samples_per_second" in set(study.cells["metric"])
        True
    """
    from deltalens.api.results import Study
    from deltalens.io.locate import locate
    from deltalens.studies.efficiency import efficiency as run

    chosen, spec = training(methods, options, options.get("setting") or ())
    trust = bool(options.get("trust_remote_code"))
    record = run(
        locate(str(model), trust),
        train_data,
        out,
        spec,
        methods=chosen,
        repeats=repeats,
        steps=block_steps,
        fields=field_names(options),
        limit=options.get("train_limit"),
        device=options.get("device") or "auto",
        dtype=options.get("dtype") or "auto",
        trust_remote_code=trust,
        fresh=bool(options.get("fresh")),
        watch=options.get("watch"),
    )
    return Study.of(record)
