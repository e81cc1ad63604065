"""Studies of models that exist: drop studies, layers, landscapes, evaluations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from deltalens.api.described import Arg, Opt, described
from deltalens.api.options import (
    Base,
    EvaluatingOptions,
    Ft,
    MeasuringOptions,
    Names,
    PairStudyOptions,
    StudyFolder,
)
from deltalens.api.translate import (
    check_before,
    checked_pair,
    measuring,
    names,
    numbers,
    paths,
)

if TYPE_CHECKING:
    from deltalens.api.results import Study

__all__ = ["drop_study", "evaluate", "scan_landscape", "sweep_layers_drop"]

_SCOPE = Opt("What is ranked together.", metavar="tensor|layer|global", common=True)
_Models = Annotated[
    str | Path | Sequence[str | Path],
    Arg("MODEL...", "Models: folders, checkpoints of a training, or org/name[@revision].", True),
]
_Origin = Annotated[Any, Arg("ORIGIN", "The model in question: a folder, or org/name[@revision].")]
_Others = Annotated[
    Sequence[Any],
    Arg("[B [C]]", "Models that span the line or plane with it, or a trajectory.", repeat=True),
]


@described
def drop_study(
    ft: Ft,
    base: Base,
    out: StudyFolder,
    *,
    strategies: Annotated[
        Names,
        Opt("Which entries go first.", metavar="salient,trivial,random", common=True),
    ] = ("salient", "trivial", "random"),
    rates: Annotated[
        str | float | Iterable[str | float],
        Opt("Drop rates: start:stop:step or a list; 0 and 1 always.", common=True),
    ] = "0:1:0.1",
    scope: Annotated[str, _SCOPE] = "tensor",
    seeds: Annotated[int, Opt("How many random orders.", common=True)] = 3,
    rescale: Annotated[bool, Opt("Divide what is kept by 1 - rate (DARE).")] = False,
    changed_only: Annotated[bool, Opt("Count rates over entries that changed.")] = False,
    **options: Unpack[PairStudyOptions],
) -> Study:
    """Put back growing shares of a fine-tune's delta, and measure what is left of it.

    One model is edited in place for every cell, straight from the two checkpoints. Without data,
    fidelity to the fine-tune is measured on texts that it writes itself. Every finished cell is
    kept: the same call goes on where this one stopped, and one with more strategies, rates or seeds
    measures what is missing (GMT, Figure 3).

    Args:
        ft, base: checkpoints: folders, files, or hub ids.
        out: the study's folder.
        strategies: which entries go back first: `salient` (largest |delta|), `trivial` (smallest),
            `random`.
        rates: drop rates, exact decimals in [0, 1]; 0 is the fine-tune and 1 the base.
        scope: what is ranked together: `tensor`, `layer` or `global`.
        seeds: how many random orders.
        rescale: divide the deltas that stay by 1 - rate.
        changed_only: count rates over the entries that differ from the base.

    Returns:
        The study; its `cells` have the columns strategy, scope, rate, seed, metric, value, stderr
        and n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.

    Example:
        >>> study = deltalens.drop_study(
        ...     "ft", "base", "new-study", data="test.jsonl", limit=20, rates="0,0.5,1", seeds=1
        ... )
        >>> sorted(study.cells["rate"].unique().tolist())
        [0.0, 0.5, 1.0]
    """
    from deltalens.api.results import Study
    from deltalens.studies.drop_study import drop_study as run

    with checked_pair(ft, base, out, options) as (ft_path, base_path):
        record = run(
            ft_path,
            base_path,
            out,
            measuring(options),
            strategies=names(strategies),
            rates=rates,
            scope=scope,
            seeds=seeds,
            rescale=rescale,
            changed_only=changed_only,
        )
    return Study.of(record)


@described
def sweep_layers_drop(
    ft: Ft,
    base: Base,
    out: StudyFolder,
    *,
    group_sizes: Annotated[
        str | int | Sequence[int],
        Opt("Blocks in a group; a sweep for each size.", metavar="N,N", common=True),
    ] = (1,),
    cache_gb: Annotated[float, Opt("Host memory that may spare the blocks before a group.")] = 4.0,
    **options: Unpack[PairStudyOptions],
) -> Study:
    """For each group of consecutive blocks, put its delta back, and keep only its delta.

    Nothing is trained. What is in no block (embeddings, the last norm, the head) keeps its delta
    when a group is dropped, and is the base's when only a group is kept. Without data, fidelity to
    the fine-tune is measured. The same call goes on where it stopped.

    Args:
        ft, base: checkpoints: folders, files, or hub ids.
        out: the study's folder.
        group_sizes: blocks in a group; every size divides the model anew.
        cache_gb: 10^9 bytes for what enters the first block that differs; 0 computes it again in
            every cell.

    Returns:
        The study; its `cells` have the columns method, size, group, seed, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.

    Example:
        >>> study = deltalens.sweep_layers_drop(
        ...     "ft", "base", "new-layers", data="test.jsonl", limit=20
        ... )
        >>> sorted(study.cells["method"].unique().tolist())
        ['base', 'drop', 'ft', 'keep']
    """
    from deltalens.api.results import Study
    from deltalens.studies.layer_drop import sweep_layers_drop as run

    with checked_pair(ft, base, out, options) as (ft_path, base_path):
        record = run(
            ft_path,
            base_path,
            out,
            measuring(options),
            groups=numbers(group_sizes, "group_sizes"),
            cache_gb=cache_gb,
        )
    return Study.of(record)


@described
def scan_landscape(
    origin: _Origin,
    out: StudyFolder,
    others: _Others = (),
    *,
    plane: Annotated[
        str,
        Opt(
            "auto goes by how many models are given.",
            metavar="checkpoints|line|random|trajectory|hessian",
            common=True,
        ),
    ] = "auto",
    grid: Annotated[
        str | int | Sequence[int] | None,
        Opt("Points: 25x25 for a plane, 51 for a line.", common=True),
    ] = None,
    span: Annotated[
        str | None, Opt("Ends of the axes: low:high, or one for each with a comma.", common=True)
    ] = None,
    base: Annotated[
        Any, Opt("A further model, projected onto the plane.", metavar="BASE", common=True)
    ] = None,
    normalize: Annotated[
        str, Opt("Scale of random directions.", metavar="filter|layer|model")
    ] = "filter",
    seed: Annotated[int, Opt("Seed of random directions and of Lanczos.")] = 0,
    low_memory: Annotated[bool, Opt("Hold no direction in memory; slower.")] = False,
    loss: Annotated[
        Any, Opt("With a metric of your own: the loss for the Hessian.", python_only=True)
    ] = None,
    **options: Unpack[MeasuringOptions],
) -> Study:
    """Scan the loss around a model, on a line or plane through other models.

    Every point is computed anew from the checkpoints, so nothing drifts, and the models keep their
    bits. A coarse grid is finished first. The same call goes on where it stopped (MFT, Figure 6).

    Args:
        origin: the model in question: a folder or hub id; in Python also a model in memory, which
            then needs a `metric` of your own.
        out: the study's folder.
        others: what spans the line or plane with it: checkpoints, or models in memory; for a
            trajectory the run's folder.
        plane: `line`, `checkpoints`, `random`, `trajectory`, `hessian`, or `auto`.
        grid: points along each direction.
        span: where the axes begin and end; chosen by the plane if None.
        base: a further model, projected onto the plane and marked.
        normalize: of random directions: `filter`, `layer` or `model`.
        seed: of random directions, and of Lanczos' first vector.
        low_memory: form each direction anew for every row and point; the same numbers.
        loss: with a `metric` of your own and plane `hessian`: model -> differentiable scalar.

    Returns:
        The study; its `cells` have the columns a, b, mark, data, metric, value, stderr, n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.scan_landscape(
        ...     "ft", "new-line", ["base"], grid=3, data="test.jsonl", limit=20
        ... )
        >>> study.kind
        'landscape'
    """
    from deltalens.api.results import Study
    from deltalens.studies.landscape.scan import scan_landscape as run

    check_before(out, [origin, *others, *([base] if base is not None else [])], options)
    trust = bool(options.get("trust_remote_code"))
    record = run(
        _located(origin, trust),
        out,
        measuring(options),
        others=[_located(other, trust) for other in others],
        base=None if base is None else _located(base, trust),
        plane=plane,
        grid=grid,
        span=span,
        normalize=normalize,
        seed=seed,
        low_memory=low_memory,
        loss=loss,
    )
    return Study.of(record)


@described
def evaluate(models: _Models, out: StudyFolder, **options: Unpack[EvaluatingOptions]) -> Study:
    """Measure several models on the same data: which is best, and how a training moved.

    Each model is loaded once, with its own tokenizer and in its own dtype. Folders called
    checkpoint-STEP, as trainers write them and `train` keeps them, are drawn over the steps, a
    line for each training; other models are levels beside the lines, or points with error bars.
    Every finished model is kept: the same call goes on where it stopped, and one with more models
    adds them.

    Args:
        models: checkpoint folders or hub ids.
        out: the study's folder.

    Returns:
        The study; its `cells` have the columns model, training, step, metric, value, stderr and n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.

    Example:
        >>> study = deltalens.evaluate(
        ...     ["base", "ft"], "new-scores", data="test.jsonl", limit=20
        ... )
        >>> study.cells["model"].unique().tolist()
        ['base', 'ft']
    """
    from deltalens.api.results import Study
    from deltalens.io.locate import locate
    from deltalens.studies.evaluate import evaluate as run

    named = paths(models)
    check_before(out, named, options)
    trust = bool(options.get("trust_remote_code"))
    located = {_name(str(model)): locate(str(model), trust) for model in named}
    return Study.of(run(located, out, measuring(options)))


def _name(model: str) -> str:
    """A model's name in the records: its path as typed, however it is spelled; or its hub id."""
    return os.path.normpath(model) if os.path.exists(model) else model


def _located(model: Any, trust: bool) -> Any:
    """A model in memory as it is; else a local folder."""
    from deltalens.io.locate import locate

    return locate(str(model), trust) if isinstance(model, str | Path) else model
