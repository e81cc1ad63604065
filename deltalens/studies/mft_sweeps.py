"""Sweeps over layers and over the amount of data, and comparisons of methods (MFT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import MethodFacts, method_name
from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import Setting, StudyRecord
from deltalens.names import block_numbers, group_blocks
from deltalens.numerics.rates import Rate, exact_rate, exact_rates, show_rate
from deltalens.scoring.loading import pick_device
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
from deltalens.training.methods import Method, method_class
from deltalens.training.prepare import training_dtype
from deltalens.training.spec import TrainingSpec

__all__ = ["COMPARED", "compare", "sweep_data_ratio", "sweep_layers", "with_complements"]

COMPARED = STUDIES["comparison"].methods
"""Methods that a comparison can contain, in the order of its table."""
COMPLEMENTS = tuple(name for name in COMPARED if name.endswith("-complement"))
"""Masks that are not learned, and remove the weights that the method of the same name keeps."""
_LAYER_SETTINGS = ("blocks", "include")
"""Settings that select the layers to be masked; in a sweep over layers, the groups select them."""
_NO_BASE = "the cells that start from the base are not finished: give `base` again"


def sweep_layers(
    methods: Sequence[Method],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    group_sizes: Sequence[int] = (4,),
    data_ratio: Rate = "1",
    seeds: int = 3,
    learning_rates: Sequence[float] = (),
    keep_checkpoints: bool = False,
    execution: Execution = HERE,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Mask the weights of one group of consecutive blocks at a time (MFT, Figures 3 and 7).

    The model as it is (`ft`) is measured as well.

    Args:
        methods: `mft`, `random-mask-weights`, `l1-mask`; and `sft`, which continues fine-tuning.
        source: the finished model, and the data for training and evaluation.
        out: the study's folder.
        spec: the settings that all trainings share.
        group_sizes: blocks per group; every size divides the model anew, and the last group may be
            smaller.
        data_ratio: the share of the rows to train on, in (0, 1]; the first rows are used.
        seeds, learning_rates, keep_checkpoints, execution, fresh, watch: as in `sweep_mask_ratio`.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    swept = dict.fromkeys(_LAYER_SETTINGS, "group_sizes")
    settings = check_trainings("layer-sweep", spec, methods, seeds, swept, learning_rates)
    ratio, blocks = exact_rate(data_ratio), _blocks_of(source.model)
    rows = _first_rows(ratio, _count_rows(source))

    def plans(study_spec: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        groups = [
            (size, str(group))
            for size in study_spec["sizes"]
            for group in group_blocks(blocks, size, source.model)
        ]
        cells = [({"method": "ft", "size": 0, "group": "", "seed": 0}, _unchanged(spec, source))]
        for method in study_spec["methods"]:
            for size, group in [(0, "")] if method == "sft" else groups:
                for seed in range(study_spec["seeds"]):
                    own = dict(study_spec["settings"][method])
                    if group:
                        own["blocks"] = group
                    setting = {"method": method, "size": size, "group": group, "seed": seed}
                    cells.append(
                        (setting, Plan(spec=cell_training(spec, method, own, seed), rows=rows))
                    )
        return cells

    return run_trainings(
        "layer-sweep",
        plans,
        source,
        out,
        spec,
        methods=methods,
        settings=settings,
        seeds=seeds,
        extra_spec={
            "sizes": (sorted({*group_sizes}), axes.numbers),
            "data_ratio": (show_rate(ratio), None),
        },
        facts={"blocks": blocks[-1] + 1},
        learning_rates=learning_rates,
        keep_checkpoints=keep_checkpoints,
        execution=execution,
        fresh=fresh,
        watch=watch,
    )


def sweep_data_ratio(
    methods: Sequence[Method],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    data_ratios: Rate | Iterable[Rate] = "0.1,0.2,0.5,1",
    seeds: int = 3,
    learning_rates: Sequence[float] = (),
    keep_checkpoints: bool = False,
    execution: Execution = HERE,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Train on growing shares of the data, always its first rows (MFT, Figures 5 and 9; for methods
    that mask gradients, this is a question that GMT's limitations leave open).

    The model as it is (`ft`) is measured as well, at ratio 0.

    Args:
        methods: `mft`, `sft`, `lora` for a finished model; `gmt`, `random-mask`, `hft` for a base,
            with `sft` added.
        source: the model, and the data for training and evaluation.
        out: the study's folder.
        spec: the settings that all trainings share.
        data_ratios: shares of the rows, in (0, 1], as "0.1,0.5" or as numbers.
        seeds, learning_rates, keep_checkpoints, execution, fresh, watch: as in `sweep_mask_ratio`.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    if any(method.facts.masks == "gradients" for method in methods):
        methods = with_methods(["sft"], methods)
    settings = check_trainings("data-ratio-sweep", spec, methods, seeds, {}, learning_rates)
    exact, count = exact_rates(data_ratios), _count_rows(source)

    def plans(study_spec: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        cells = [({"method": "ft", "data_ratio": 0.0, "seed": 0}, _unchanged(spec, source))]
        for method in study_spec["methods"]:
            for ratio in map(Fraction, study_spec["ratios"]):
                for seed in range(study_spec["seeds"]):
                    own = cell_training(spec, method, study_spec["settings"][method], seed)
                    setting = {"method": method, "data_ratio": float(ratio), "seed": seed}
                    cells.append((setting, Plan(spec=own, rows=_first_rows(ratio, count))))
        return cells

    return run_trainings(
        "data-ratio-sweep",
        plans,
        source,
        out,
        spec,
        methods=methods,
        settings=settings,
        seeds=seeds,
        extra_spec={"ratios": ([show_rate(ratio) for ratio in exact], axes.rates)},
        learning_rates=learning_rates,
        keep_checkpoints=keep_checkpoints,
        execution=execution,
        fresh=fresh,
        watch=watch,
    )


def compare(
    methods: Sequence[Method],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    base: str | Path | None = None,
    seeds: int = 3,
    learning_rates: Sequence[float] = (),
    keep_checkpoints: bool = False,
    execution: Execution = HERE,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Compare methods that continue from one finished model (MFT, Figure 2, Tables 1, 2, 5 and 6).

    The model as it is (`ft`) is always measured as well, and so is the base, if there is one.
    `sft`, `lora-on-ft` and methods that mask weights or gradients start from the model; `sft` has a
    new optimizer and a new schedule. `lora` and `lora-continued` start from the base (`lora` from
    the model, where no base is given); `lora-continued` merges the result of `lora` and trains a
    second adapter on it for the same number of steps.
    Methods named `...-complement` remove 1 - ratio of the weights: those that the method without
    the suffix keeps.

    Args:
        methods: some of `COMPARED`; of one method also several variants (`labelled`).
        source: the finished model, and the data for training and evaluation; with `eval_every`,
            evaluations during the trainings are recorded as well.
        out: the study's folder.
        spec: the settings that all trainings share.
        base: the checkpoint that the model was fine-tuned from.
        seeds, learning_rates, keep_checkpoints, execution, fresh, watch: as in `sweep_mask_ratio`.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    lacking = [method.name for method in methods if _needs_base(method.name)]
    if lacking and base is None:
        raise DeltaLensError(f"{lacking[0]} needs the checkpoint of the base: give `base`")
    methods = with_methods(["base", "ft"] if base is not None else ["ft"], methods)
    settings = check_trainings("comparison", spec, methods, seeds, {}, learning_rates)

    def plan(method: str, seed: int, own: Mapping[str, Any]) -> Plan:
        if method == "ft":
            return _unchanged(spec, source)
        on_base = method == "base" or own["from"] == "base"
        unavailable = _NO_BASE if on_base and base is None else None
        if method == "base":
            return Plan(spec=spec, checkpoint=base, as_it_is=True, unavailable=unavailable)
        trained = {name: value for name, value in own.items() if name not in _START}
        return Plan(
            spec=cell_training(spec, method, trained, seed),
            start=base if on_base else None,
            continued=method_name(method) == "lora-continued",
            unavailable=unavailable,
        )

    def plans(study_spec: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        return [
            ({"method": method, "seed": seed}, plan(method, seed, study_spec["settings"][method]))
            for method in study_spec["methods"]
            for seed in range(study_spec["seeds"] if _facts(method).random else 1)
        ]

    for method, own in settings.items():
        on_base = base is not None and (method == "base" or _facts(method).from_base)
        if base is not None and on_base:
            own |= _start(base, source)
        if not _facts(method).as_it_is:
            own["from"] = "base" if on_base else "ft"
    return run_trainings(
        "comparison",
        plans,
        source,
        out,
        spec,
        methods=methods,
        settings=settings,
        seeds=seeds,
        extra_spec={},
        point_of=_point_of,
        requires=_requires,
        learning_rates=learning_rates,
        keep_checkpoints=keep_checkpoints,
        execution=execution,
        fresh=fresh,
        watch=watch,
    )


def with_complements(methods: Sequence[Method]) -> list[Method]:
    """Add the complement of every method that has one.

    Args:
        methods: the methods of a comparison.

    Returns:
        The methods, then their complements with the same settings.

    Raises:
        DeltaLensError: none of the methods has a complement.
    """
    added = [
        method_class(f"{method.name}-complement").from_record(dataclasses.asdict(method))
        for method in methods
        if f"{method.name}-complement" in COMPARED
    ]
    if not added:
        names = ", ".join(name.removesuffix("-complement") for name in COMPLEMENTS)
        raise DeltaLensError(f"only these methods have a complement: {names}; compare one of them")
    return [*methods, *added]


def _facts(method: str) -> MethodFacts:
    """The catalog's entry of a method."""
    return method_class(method_name(method)).facts


def _needs_base(method: str) -> bool:
    """Whether a method is the base, or cannot start from anything else."""
    facts = _facts(method)
    return method == "base" or (facts.from_base and not facts.or_model)


def _blocks_of(model: str | Path) -> list[int]:
    """The numbers of a checkpoint's blocks, according to the names of its tensors.

    Raises:
        DeltaLensError: it has no blocks.
    """
    numbers = block_numbers(open_checkpoint(model).tensors)
    if not numbers:
        raise DeltaLensError(f"{model}: no blocks (no tensor name contains a number)")
    return numbers


def _count_rows(source: TrainingData) -> int:
    return len(read_rows(source.data, source.limit, source.fields).rows)


def _first_rows(ratio: Fraction, rows: int) -> int:
    """How many rows are a share of all; at least one."""
    if ratio <= 0:
        raise DeltaLensError(f"data ratio {show_rate(ratio)}: must be in (0, 1]")
    return max(1, round(ratio * rows))


_START = ("from", "model", "dtype")
"""Entries of a method's recorded settings that say where it starts."""


def _start(base: str | Path, source: TrainingData) -> dict[str, Any]:
    """The base's identity, and the dtype in which it is measured and trained."""
    checkpoint = open_checkpoint(base)
    kind = training_dtype(source.dtype, checkpoint, pick_device(source.device))
    return {"model": checkpoint.identity, "dtype": str(kind).removeprefix("torch.")}


def _requires(setting: Setting, plan: Plan) -> str | None:
    """Continued LoRA requires the LoRA with the same settings and seed."""
    return plan.training if plan.continued else None


def _point_of(setting: Setting, plan: Plan) -> str | None:
    return plan.training if method_name(setting["method"]) == "lora" else None


def _unchanged(spec: TrainingSpec, source: TrainingData) -> Plan:
    """The study's model as it is."""
    return Plan(spec=spec, checkpoint=source.model)
