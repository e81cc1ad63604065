"""Where, how much, and on what data a finished model is best masked; and against what (MFT)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import METHODS
from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import Setting, StudyRecord
from deltalens.names import block_numbers, group_blocks
from deltalens.numerics.rates import Rate, exact_rate, exact_rates, show_rate
from deltalens.scoring.loading import pick_device
from deltalens.scoring.rows import read_rows
from deltalens.studies import axes
from deltalens.studies.engine import StudyWatch
from deltalens.studies.training_plans import Plan, TrainingData, check_trainings
from deltalens.studies.trainings import run_trainings
from deltalens.training.run import training_dtype
from deltalens.training.spec import TrainingSpec

__all__ = ["COMPARED", "compare", "complements", "sweep_data_ratio", "sweep_layers"]

COMPARED = STUDIES["comparison"].methods
"""What a comparison knows, in the order of its table, as below."""
COMPLEMENTS = tuple(name for name in COMPARED if name.endswith("-complement"))
"""Masks that are not learned, which remove what those at the ratio would keep."""
_OF_GROUPS = ("blocks", "include")
"""What says which layers are masked: a group of blocks does."""
_NO_BASE = "what starts from the base is not finished: name its checkpoint again (--base)"


def sweep_layers(
    methods: Sequence[str],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    sizes: Sequence[int] = (4,),
    data_ratio: Rate = "1",
    seeds: int = 3,
    keep_checkpoints: bool = False,
    jobs: int = 1,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Mask one group of consecutive blocks after the other (MFT, Figures 3 and 7).

    Beside them stands the model as it is (`ft`).

    Args:
        methods: `mft`, `random-mask-weights`, `l1-mask`; and `sft`, its continued fine-tuning.
        source: the finished model, the data, and what is measured.
        out: the study's folder.
        spec: the training's settings; method, blocks and seed are the cell's.
        sizes: blocks in a group; every size divides the model anew, the last group may be smaller.
        data_ratio: train on this part of the rows, the first ones; in (0, 1].
        seeds, keep_checkpoints, jobs, fresh, watch: as in `sweep_mask_ratio`.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    swept = dict.fromkeys(_OF_GROUPS, "sizes")
    settings = check_trainings("layer-sweep", spec, methods, seeds, swept)
    part, blocks = exact_rate(data_ratio), _blocks_of(source.model)
    rows = _part(part, _rows(source))

    def plans(wanted: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        groups = [
            (size, str(group))
            for size in wanted["sizes"]
            for group in group_blocks(blocks, size, source.model)
        ]
        made = [({"method": "ft", "size": 0, "group": "", "seed": 0}, _as_it_is(spec, source))]
        for method in wanted["methods"]:
            for size, group in [(0, "")] if method == "sft" else groups:
                for seed in range(wanted["seeds"]):
                    named = {"blocks": group} if group else {}
                    own = spec.of(method, seed=seed, **wanted["settings"][method], **named)
                    cell = {"method": method, "size": size, "group": group, "seed": seed}
                    made.append((cell, Plan(spec=own, rows=rows)))
        return made

    return run_trainings(
        "layer-sweep",
        plans,
        source,
        out,
        spec,
        settings=settings,
        seeds=seeds,
        along={
            "sizes": (sorted({*sizes}), axes.numbers),
            "data_ratio": (show_rate(part), None),
        },
        facts={"blocks": blocks[-1] + 1},
        keep_checkpoints=keep_checkpoints,
        jobs=jobs,
        fresh=fresh,
        watch=watch,
    )


def sweep_data_ratio(
    methods: Sequence[str],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    ratios: str | Iterable[Rate] = "0.1,0.2,0.5,1",
    seeds: int = 3,
    keep_checkpoints: bool = False,
    jobs: int = 1,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Train on growing parts of the data, always its first rows (MFT, Figures 5 and 9; of masked
    gradients against plain fine-tuning, which GMT's limitations leave open).

    Args:
        methods: `mft`, `sft`, `lora` of a finished model; `gmt`, `random-mask`, `hft` of a base,
            with `sft` always beside them. The model as it is (`ft`) stands at ratio 0.
        source: the model, the data, and what is measured.
        out: the study's folder.
        spec: the training's settings; method and seed are the cell's.
        ratios: parts of the rows, in (0, 1].
        seeds, keep_checkpoints, jobs, fresh, watch: as in `sweep_mask_ratio`.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    if any(METHODS[one].masks == "gradients" for one in methods if one in METHODS):
        methods = ("sft", *methods)
    settings = check_trainings("data-ratio-sweep", spec, methods, seeds, {})
    exact, count = exact_rates(ratios), _rows(source)

    def plans(wanted: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        made = [({"method": "ft", "data_ratio": 0.0, "seed": 0}, _as_it_is(spec, source))]
        for method in wanted["methods"]:
            for ratio in map(Fraction, wanted["ratios"]):
                for seed in range(wanted["seeds"]):
                    own = spec.of(method, seed=seed, **wanted["settings"][method])
                    cell = {"method": method, "data_ratio": float(ratio), "seed": seed}
                    made.append((cell, Plan(spec=own, rows=_part(ratio, count))))
        return made

    return run_trainings(
        "data-ratio-sweep",
        plans,
        source,
        out,
        spec,
        settings=settings,
        seeds=seeds,
        along={"ratios": ([show_rate(ratio) for ratio in exact], axes.rates)},
        keep_checkpoints=keep_checkpoints,
        jobs=jobs,
        fresh=fresh,
        watch=watch,
    )


def compare(
    methods: Sequence[str],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    base: str | Path | None = None,
    seeds: int = 3,
    keep_checkpoints: bool = False,
    jobs: int = 1,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """One finished model, several ways to go on (MFT, Figure 2, Tables 1, 2, 5 and 6).

    Args:
        methods: of `COMPARED`; `ft`, the model as it is, is always among them, and so is `base`
            where one is given. From `ft` start `sft`, which goes on fine-tuning with a fresh
            optimizer and schedule, `lora-on-ft` and the masks of weights; from `base` `lora` and
            `lora-continued`, which trains another adapter on the merged result of `lora`, as long
            again. With `-complement`, masks that are not learned remove 1 - ratio of the weights.
        source: the finished model, the data, and what is measured; with `eval_every`, on the way
            as well.
        out: the study's folder.
        spec: the training's settings; method and seed are the cell's.
        base: what the model was tuned from.
        seeds, keep_checkpoints, jobs, fresh, watch: as in `sweep_mask_ratio`.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    starts = {"base", *(one for one in COMPARED if METHODS[one].from_base)}
    needed = [method for method in methods if method in starts]
    if needed and base is None:
        raise DeltaLensError(f"{needed[0]} needs the checkpoint of the base: --base")
    with_base = ("base",) if base is not None else ()
    settings = check_trainings("comparison", spec, (*with_base, "ft", *methods), seeds, {})

    def plan(method: str, seed: int, own: Mapping[str, Any]) -> Plan:
        if method == "ft":
            return _as_it_is(spec, source)
        lacks = _NO_BASE if method in starts and base is None else None
        if method == "base":
            return Plan(spec=spec, still=base, lacks=lacks)
        trained = METHODS[method].as_trained or method
        given = {name: value for name, value in own.items() if name not in _START}
        return Plan(
            spec=spec.of(trained, seed=seed, **given),
            start=base if METHODS[method].from_base else None,
            continued=method == "lora-continued",
            lacks=lacks,
        )

    def plans(wanted: Mapping[str, Any]) -> list[tuple[Setting, Plan]]:
        return [
            ({"method": method, "seed": seed}, plan(method, seed, wanted["settings"][method]))
            for method in wanted["methods"]
            for seed in range(wanted["seeds"] if METHODS[method].random else 1)
        ]

    for method, own in settings.items():
        if method in starts and base is not None:
            own |= _start(base, source)
        if METHODS[method].options is not None:
            own["from"] = "base" if METHODS[method].from_base else "ft"
    return run_trainings(
        "comparison",
        plans,
        source,
        out,
        spec,
        settings=settings,
        seeds=seeds,
        along={},
        same=_named,
        after=_ground,
        keep_checkpoints=keep_checkpoints,
        jobs=jobs,
        fresh=fresh,
        watch=watch,
    )


def complements(methods: Sequence[str]) -> list[str]:
    """The masks that remove what those among the methods would keep.

    Raises:
        DeltaLensError: there is none of which that could be said.
    """
    found = [name for name in COMPLEMENTS if name.removesuffix("-complement") in methods]
    if not found:
        known = ", ".join(name.removesuffix("-complement") for name in COMPLEMENTS)
        raise DeltaLensError(f"the complement is that of {known}; compare one of them")
    return found


def _blocks_of(model: str | Path) -> list[int]:
    """The numbers of a checkpoint's blocks, by its tensors' names.

    Raises:
        DeltaLensError: none.
    """
    numbers = block_numbers(open_checkpoint(model).tensors)
    if not numbers:
        raise DeltaLensError(f"{model}: no blocks (names with a number) among its tensors")
    return numbers


def _rows(source: TrainingData) -> int:
    return len(read_rows(source.data, source.limit, source.fields).rows)


def _part(ratio: Fraction, rows: int) -> int:
    """So many of the rows."""
    if ratio <= 0:
        raise DeltaLensError(f"data ratio {show_rate(ratio)}: in (0, 1]")
    return max(1, round(ratio * rows))


_START = ("from", "model", "dtype")
"""Where a method starts, among its settings."""


def _start(base: str | Path, source: TrainingData) -> dict[str, Any]:
    """Which checkpoint the base is, and in which dtype it is measured and trained."""
    checkpoint = open_checkpoint(base)
    kind = training_dtype(source.dtype, checkpoint, pick_device(source.device))
    return {"model": checkpoint.identity, "dtype": str(kind).removeprefix("torch.")}


def _ground(setting: Setting) -> str | None:
    """Continued LoRA takes the LoRA with its seed."""
    return f"lora {setting['seed']}" if setting["method"] == "lora-continued" else None


def _named(setting: Setting) -> str | None:
    return f"lora {setting['seed']}" if setting["method"] == "lora" else None


def _as_it_is(spec: TrainingSpec, source: TrainingData) -> Plan:
    """The model that the trainings begin with."""
    return Plan(spec=spec, still=source.model)
