"""Sweeps around sparse tuning: over the share of the model that is trained, and over how the masks
are chosen (SPEFT, arXiv 2412.13488, Figure 2 and Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import method_name
from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import Setting, StudyRecord
from deltalens.names import check_scope
from deltalens.scoring.rows import read_rows
from deltalens.studies import axes
from deltalens.studies.engine import HERE, StudyWatch
from deltalens.studies.executors import Execution
from deltalens.studies.training_plans import (
    Plan,
    TrainingData,
    cell_training,
    check_trainings,
    with_methods,
)
from deltalens.studies.trainings import run_trainings
from deltalens.training.budget import LowRankSize, low_rank_size
from deltalens.training.methods import Method, method_class
from deltalens.training.settling import head_for, settled
from deltalens.training.spec import TrainingSpec

__all__ = ["DENSITY_SWEEP", "MASK_SWEEP", "sweep_density", "sweep_masks"]

DENSITY_SWEEP, MASK_SWEEP = "density-sweep", "mask-sweep"
_WHOLE = ("ft", "sft")
"""They train nothing, or everything, and stand beside every budget."""
_TARGETS = "targets"


def sweep_density(
    methods: Sequence[Method],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    ranks: Sequence[int] = (4, 8, 16, 32, 64, 128),
    targets: str = "attention",
    seeds: int = 3,
    learning_rates: Sequence[float] = (),
    keep_checkpoints: bool = False,
    execution: Execution = HERE,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Train growing shares of a model, as many parameters by every method (SPEFT, Figure 2).

    A budget is the rank of a LoRA; every method trains as many parameters as that LoRA has on the
    same layers. The share is that of the model's own parameters: adapters are not counted in.
    (peft prints the share of both together, which is smaller.) The model as it is (`ft`) is
    measured as well, at rank 0, and `sft`, which trains all of it, if it is given.

    Args:
        methods: those with a budget (`Method.budget_settings`): `speft`, `lora`, `pissa`; and
            `sft`.
        source: the model, and the data for training and evaluation.
        out: the study's folder.
        spec: the settings that all trainings share.
        ranks: the budgets.
        targets: the layers that all methods adapt: `attention`, `linear` or names.
        seeds, learning_rates, keep_checkpoints, execution, fresh, watch: as in `sweep_mask_ratio`.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    if not ranks or min(ranks) < 1:
        raise DeltaLensError(f"ranks {[*ranks]}: whole numbers above 0")
    methods = with_methods(["ft"], methods)
    swept = {name: "`ranks`" for method in methods for name in method.budget_settings}
    swept[_TARGETS] = "`targets`"
    settings = check_trainings(DENSITY_SWEEP, spec, methods, seeds, swept, learning_rates)
    size = _size(source, spec, targets)
    if size.trained(max(ranks)) > size.parameters:
        raise DeltaLensError(
            f"ranks: a LoRA of rank {max(ranks)} on these layers has {size.trained(max(ranks)):,} "
            f"parameters, more than the model ({size.parameters:,}); give ranks up to "
            f"{size.parameters // size.per_rank}"
        )

    def plans(study_spec: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        return [
            (
                _budget_setting(method, rank, size) | {"seed": seed},
                _budget_plan(method, rank, seed, study_spec, spec, source),
            )
            for method in study_spec["methods"]
            for rank in ([0] if method_name(method) in _WHOLE else study_spec["ranks"])
            for seed in range(1 if method == "ft" else study_spec["seeds"])
        ]

    return run_trainings(
        DENSITY_SWEEP,
        plans,
        source,
        out,
        spec,
        methods=methods,
        settings=settings,
        seeds=seeds,
        extra_spec={"ranks": (sorted({*ranks}), axes.numbers), _TARGETS: (targets, None)},
        facts={"parameters": size.parameters, "trained_per_rank": size.per_rank},
        learning_rates=learning_rates,
        keep_checkpoints=keep_checkpoints,
        execution=execution,
        fresh=fresh,
        watch=watch,
    )


def _size(source: TrainingData, spec: TrainingSpec, targets: str) -> LowRankSize:
    checkpoint = open_checkpoint(source.model)
    rows = read_rows(source.data, source.limit, source.fields)
    head = head_for(settled(spec, checkpoint.config, rows, ()), checkpoint.config)
    return low_rank_size(checkpoint, targets, head)


def _budget_setting(method: str, rank: int, size: LowRankSize) -> Setting:
    """The setting of a cell, without its seed."""
    trained = {"ft": 0, "sft": size.parameters}.get(method_name(method), size.trained(rank))
    share = trained / size.parameters
    return {"method": method, "rank": rank, "trained": trained, "trained_share": share}


def _budget_plan(
    method: str,
    rank: int,
    seed: int,
    study_spec: Mapping[str, Any],
    spec: TrainingSpec,
    source: TrainingData,
) -> Plan:
    if method == "ft":
        return Plan(spec=spec, checkpoint=source.model)
    own, kind = dict(study_spec["settings"][method]), method_class(method_name(method))
    if kind.budget_settings:
        own[kind.budget_settings[0]] = rank
    if _TARGETS in kind.own_settings():
        own[_TARGETS] = study_spec[_TARGETS]
    return Plan(spec=cell_training(spec, method, own, seed))


def sweep_masks(
    methods: Sequence[Method],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    scopes: Sequence[str] = ("global", "layer", "tensor"),
    refresh_every: Sequence[int] = (1000,),
    seeds: int = 3,
    learning_rates: Sequence[float] = (),
    keep_checkpoints: bool = False,
    execution: Execution = HERE,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Train with static and dynamic masks, ranked globally or locally (SPEFT, Table 4).

    Args:
        methods: one, with the settings `scope` and `refresh_every`: `speft`.
        source: the model, and the data for training and evaluation.
        out: the study's folder.
        spec: the settings that all trainings share.
        scopes: what is ranked together: `global`, `layer`, `tensor` (the paper's local masks).
        refresh_every: steps from one mask to the next; static masks, which have 0, are always there
            as well.
        seeds, learning_rates, keep_checkpoints, execution, fresh, watch: as in `sweep_mask_ratio`.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    if len(methods) != 1:
        names = ", ".join(method.name for method in methods)
        raise DeltaLensError(f"methods {names}: a sweep over masks has one")
    for scope in scopes:
        check_scope(scope)
    if not scopes or min(refresh_every, default=1) < 1:
        raise DeltaLensError(
            f"refresh_every {[*refresh_every]}, scopes {[*scopes]}: give steps above 0, and scopes"
        )
    swept = {"scope": "`scopes`", "refresh_every": "refresh_every"}
    settings = check_trainings(MASK_SWEEP, spec, methods, seeds, swept, learning_rates)
    (label,) = settings

    def plans(study_spec: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        own = study_spec["settings"][label]
        return [
            (
                {"scope": scope, "refresh_every": steps, "seed": seed},
                Plan(
                    spec=cell_training(
                        spec, label, {**own, "scope": scope, "refresh_every": steps or None}, seed
                    )
                ),
            )
            for scope in study_spec["scopes"]
            for steps in study_spec["refreshes"]
            for seed in range(study_spec["seeds"])
        ]

    order = ("global", "layer", "tensor")
    return run_trainings(
        MASK_SWEEP,
        plans,
        source,
        out,
        spec,
        methods=methods,
        settings=settings,
        seeds=seeds,
        extra_spec={
            "scopes": (axes.in_order(scopes, order), axes.names(order)),
            "refreshes": (sorted({0, *refresh_every}), axes.numbers),
        },
        learning_rates=learning_rates,
        keep_checkpoints=keep_checkpoints,
        execution=execution,
        fresh=fresh,
        watch=watch,
    )
