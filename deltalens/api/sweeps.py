"""Studies whose cells are trainings: sweeps and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from deltalens.api.described import Opt, described
from deltalens.api.options import (
    EvalData,
    Methods,
    Model,
    Names,
    StudyFolder,
    TrainData,
    TrainingStudyOptions,
)
from deltalens.api.translate import (
    execution,
    learning_rates,
    names,
    numbers,
    training,
    training_data,
)

if TYPE_CHECKING:
    from deltalens.api.results import Study

    pass

__all__ = [
    "compare",
    "sweep_data_ratio",
    "sweep_density",
    "sweep_layers",
    "sweep_mask_ratio",
    "sweep_masks",
]


@described
def sweep_mask_ratio(
    methods: Methods,
    model: Model,
    train_data: TrainData,
    out: StudyFolder,
    *,
    eval_data: EvalData = (),
    mask_ratios: Annotated[
        str | float | Iterable[str | float] | None,
        Opt("start:stop:step or a list (the papers'); 0 always.", common=True),
    ] = None,
    **options: Unpack[TrainingStudyOptions],
) -> Study:
    """Train at growing mask ratios, and measure what comes out (GMT, Figure 2; MFT, Figure 4).

    Masked gradients stand beside plain fine-tuning; where weights are removed, the model as it is
    stands beside them. The same call goes on where it stopped, and one with more methods, ratios or
    seeds trains what is missing.

    Args:
        methods: `gmt`, `random-mask`, `one-off-drop`, `hft` on a base; or `mft`,
            `random-mask-weights`, `l1-mask` on a fine-tune; or a package's with a mask ratio.
        model: a checkpoint folder or hub id.
        train_data: rows to train on.
        out: the study's folder.
        eval_data: rows to measure on; or give `tasks`.
        mask_ratios: fractions masked out, in [0, 1); the papers' if None.

    Returns:
        The study; its `cells` have the columns method, mask_ratio, seed, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.sweep_mask_ratio(
        ...     "gmt:scope=global", "base", "train.jsonl", "new-ratios", eval_data="test.jsonl",
        ...     mask_ratios="0.5", seeds=1, steps=2, train_limit=32,
        ... )
        >>> sorted(study.cells["method"].unique().tolist())
        ['gmt', 'sft']
    """
    from deltalens.api.results import Study
    from deltalens.studies.mask_ratio import sweep_mask_ratio as run

    chosen, spec = training(methods, options, options.get("setting") or (), ["mask_ratio"])
    source = training_data(model, train_data, {**options, "eval_data": eval_data})
    record = run(chosen, source, out, spec, mask_ratios=mask_ratios, **_how(options))
    return Study.of(record)


@described
def sweep_data_ratio(
    methods: Methods,
    model: Model,
    train_data: TrainData,
    out: StudyFolder,
    *,
    eval_data: EvalData = (),
    data_ratios: Annotated[
        str | float | Iterable[str | float],
        Opt("Parts of the rows: start:stop:step or a list.", common=True),
    ] = "0.1,0.2,0.5,1",
    **options: Unpack[TrainingStudyOptions],
) -> Study:
    """Train on growing parts of the rows, always the first ones (MFT, Figure 5).

    The model as it is stands beside them; masked gradients stand beside plain fine-tuning.

    Args:
        methods: `mft`, `sft`, `lora`, or `gmt`, `random-mask`, `hft`; or a package's.
        model: a checkpoint folder or hub id.
        train_data: rows to train on.
        out: the study's folder.
        eval_data: rows to measure on; or give `tasks`.
        data_ratios: parts of the rows, in (0, 1].

    Returns:
        The study; its `cells` have the columns method, data_ratio, seed, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.sweep_data_ratio(
        ...     "sft", "ft", "train.jsonl", "new-parts", eval_data="test.jsonl",
        ...     data_ratios="0.5,1", seeds=1, steps=2, train_limit=32,
        ... )
        >>> sorted(study.cells["data_ratio"].unique().tolist())
        [0.0, 0.5, 1.0]
    """
    from deltalens.api.results import Study
    from deltalens.studies.mft_sweeps import sweep_data_ratio as run

    chosen, spec = training(methods, options, options.get("setting") or ())
    source = training_data(model, train_data, {**options, "eval_data": eval_data})
    record = run(chosen, source, out, spec, data_ratios=data_ratios, **_how(options))
    return Study.of(record)


@described
def sweep_layers(
    methods: Methods,
    model: Model,
    train_data: TrainData,
    out: StudyFolder,
    *,
    eval_data: EvalData = (),
    group_sizes: Annotated[
        str | int | Sequence[int],
        Opt("Blocks in a group; a sweep for each size.", metavar="N,N", common=True),
    ] = (4,),
    data_ratio: Annotated[str | float, Opt("Train on this part of the rows.")] = "1",
    **options: Unpack[TrainingStudyOptions],
) -> Study:
    """Mask one group of consecutive blocks after the other (MFT, Figures 3 and 7).

    One training per method, group and seed, beside the model as it is. (`sweep_layers_drop` asks
    the same of a delta, without training.)

    Args:
        methods: `mft`, `random-mask-weights`, `l1-mask`, and `sft` as a reference; or a package's
            that masks blocks.
        model: a finished model: a checkpoint folder or hub id.
        train_data: rows to train on.
        out: the study's folder.
        eval_data: rows to measure on; or give `tasks`.
        group_sizes: blocks in a group; every size divides the model anew.
        data_ratio: train on this part of the rows, the first ones; in (0, 1].

    Returns:
        The study; its `cells` have the columns method, size, group, seed, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.sweep_layers(
        ...     "l1-mask", "ft", "train.jsonl", "new-groups", eval_data="test.jsonl", group_sizes=1,
        ...     seeds=1,
        ... )
        >>> study.cells["group"].nunique() > 2
        True
    """
    from deltalens.api.results import Study
    from deltalens.studies.mft_sweeps import sweep_layers as run

    chosen, spec = training(methods, options, options.get("setting") or (), ["blocks"])
    source = training_data(model, train_data, {**options, "eval_data": eval_data})
    sizes = numbers(group_sizes, "group_sizes")
    record = run(
        chosen, source, out, spec, group_sizes=sizes, data_ratio=data_ratio, **_how(options)
    )
    return Study.of(record)


@described
def sweep_density(
    methods: Methods,
    model: Model,
    train_data: TrainData,
    out: StudyFolder,
    *,
    eval_data: EvalData = (),
    ranks: Annotated[
        str | int | Sequence[int],
        Opt("Budgets: as many parameters as LoRA of rank N.", metavar="N,N", common=True),
    ] = (4, 8, 16, 32, 64, 128),
    targets: Annotated[
        str, Opt("attention, linear, or names as q_proj,v_proj.", metavar="TARGETS", common=True)
    ] = "attention",
    **options: Unpack[TrainingStudyOptions],
) -> Study:
    """Train growing shares of a model, equally many parameters by each method (SPEFT, Figure 2).

    A budget is the rank of a LoRA, and every method trains as many parameters as that LoRA has on
    the same layers. The model as it is stands beside them. (In the paper a LoRA's alpha is its
    rank: `lora:lora-alpha=rank`.)

    Args:
        methods: `speft`, `lora`, `pissa`, and `sft`, which trains everything; or a package's with a
            budget.
        model: a checkpoint folder or hub id.
        train_data: rows to train on.
        out: the study's folder.
        eval_data: rows to measure on; or give `tasks`.
        ranks: the budgets, whole numbers above 0.
        targets: the layers that all methods adapt.

    Returns:
        The study; its `cells` have the columns method, rank, trained, trained_share (of the model's
        own parameters, a fraction), seed, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.sweep_density(
        ...     "lora,pissa", "base", "train.jsonl", "new-densities", eval_data="test.jsonl",
        ...     ranks="1,2", seeds=1, steps=2, train_limit=32,
        ... )
        >>> sorted(study.cells["rank"].unique().tolist())
        [0, 1, 2]
    """
    from deltalens.api.results import Study
    from deltalens.studies.budgets import sweep_density as run

    swept = ["lora_rank", "like_lora", "density", "of_model", "targets"]
    chosen, spec = training(methods, options, options.get("setting") or (), swept)
    source = training_data(model, train_data, {**options, "eval_data": eval_data})
    budgets = numbers(ranks, "ranks")
    record = run(chosen, source, out, spec, ranks=budgets, targets=targets, **_how(options))
    return Study.of(record)


@described
def sweep_masks(
    methods: Methods,
    model: Model,
    train_data: TrainData,
    out: StudyFolder,
    *,
    eval_data: EvalData = (),
    scopes: Annotated[Names, Opt("What is ranked together.", metavar="SCOPES", common=True)] = (
        "global",
        "layer",
        "tensor",
    ),
    refresh_every: Annotated[
        str | int | Sequence[int],
        Opt("Steps from mask to mask, beside static ones.", metavar="N,N", common=True),
    ] = (1000,),
    **options: Unpack[TrainingStudyOptions],
) -> Study:
    """Compare static with dynamic masks, and global with local ones (SPEFT, Table 4).

    Args:
        methods: `speft`, with its other settings behind colons; or a package's with a scope that
            renews its masks.
        model: a checkpoint folder or hub id.
        train_data: rows to train on.
        out: the study's folder.
        eval_data: rows to measure on; or give `tasks`.
        scopes: what is ranked together: global, layer, tensor.
        refresh_every: steps from one mask to the next; static masks are always there.

    Returns:
        The study; its `cells` have the columns scope, refresh_every (0: static), seed, metric,
        value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.sweep_masks(
        ...     "speft:density=0.1", "base", "train.jsonl", "new-masks", eval_data="test.jsonl",
        ...     scopes="global", refresh_every=1, seeds=1, steps=2, train_limit=32,
        ... )
        >>> sorted(study.cells["refresh_every"].unique().tolist())
        [0, 1]
    """
    from deltalens.api.results import Study
    from deltalens.studies.budgets import sweep_masks as run

    chosen, spec = training(methods, options, options.get("setting") or (), ["scope"])
    source = training_data(model, train_data, {**options, "eval_data": eval_data})
    record = run(
        chosen,
        source,
        out,
        spec,
        scopes=names(scopes),
        refresh_every=numbers(refresh_every, "refresh_every"),
        **_how(options),
    )
    return Study.of(record)


@described
def compare(
    methods: Methods,
    model: Model,
    train_data: TrainData,
    out: StudyFolder,
    *,
    eval_data: EvalData = (),
    base: Annotated[
        str | Path | None,
        Opt("What MODEL was tuned from, where LoRA starts.", metavar="BASE", common=True),
    ] = None,
    complement: Annotated[
        bool, Opt("Also remove what random-mask-weights and l1-mask keep.")
    ] = False,
    **options: Unpack[TrainingStudyOptions],
) -> Study:
    """Compare ways to go on from a finished model: masks, more training, LoRA (MFT, Table 1).

    `sft` goes on fine-tuning with a fresh optimizer and schedule; `lora` trains adapters on the
    base, as MFT's paper does, `lora-continued` goes on from their result, `lora-on-ft` trains them
    on the model. The model as it is stands beside them. A method may come several times, each with
    settings of its own: "gmt:scope=global,gmt:scope=tensor".

    Args:
        methods: from the model: `mft`, `sft`, `lora-on-ft`, `random-mask-weights`, `l1-mask`,
            `gmt`, `random-mask`, `hft`, or a package's; from the base, or from the model if no base
            is given: `lora`, `pissa`, `speft`; from the base: `lora-continued`.
        model: a finished model: a checkpoint folder or hub id.
        train_data: rows to train on.
        out: the study's folder.
        eval_data: rows to measure on; with `eval_every`, during the trainings as well. Or give
            `tasks`.
        base: what the model was tuned from; it is measured, too.
        complement: beside masks that are not learned, those that remove 1 - ratio.

    Returns:
        The study; its `cells` have the columns method, seed, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.compare(
        ...     "mft:blocks=1,l1-mask", "ft", "train.jsonl", "new-comparison",
        ...     eval_data="test.jsonl", seeds=1, steps=2, train_limit=32,
        ... )
        >>> sorted(study.cells["method"].unique().tolist())
        ['ft', 'l1-mask', 'mft']
    """
    from deltalens.api.results import Study
    from deltalens.io.locate import locate
    from deltalens.studies.mft_sweeps import compare as run
    from deltalens.studies.mft_sweeps import with_complements

    chosen, spec = training(methods, options, options.get("setting") or ())
    source = training_data(model, train_data, {**options, "eval_data": eval_data})
    record = run(
        with_complements(chosen) if complement else chosen,
        source,
        out,
        spec,
        base=locate(str(base), source.trust_remote_code) if base is not None else None,
        **_how(options),
    )
    return Study.of(record)


def _how(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a study of trainings is made, as its function takes it."""
    given = ("seeds", "keep_checkpoints", "fresh", "watch")
    rates = learning_rates(options.get("learning_rate"))
    return {
        **{name: options[name] for name in given if options.get(name) is not None},
        "execution": execution(options),
        "learning_rates": rates if len(rates) > 1 else (),
    }
