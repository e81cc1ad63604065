"""Where, how much, and on what data a finished model is best masked; and against what (MFT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.evaluate.rows import read_rows
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.pairing import block_of
from deltalens.io.records import Setting, StudyRecord
from deltalens.numerics.rates import Rate, exact_rate, exact_rates, show_rate
from deltalens.studies.study import StudyWatch
from deltalens.studies.trainings import Plan, TrainingData, run_trainings
from deltalens.training.asked import WEIGHT_MASKS, TrainingAsked

__all__ = ["COMPARED", "compare", "groups_of", "sweep_data_ratio", "sweep_layers"]

COMPARED = ("base", "ft", "sft", "lora", *WEIGHT_MASKS)
"""What a comparison knows."""


def sweep_layers(
    methods: Sequence[str],
    source: TrainingData,
    out: str | Path,
    asked: TrainingAsked,
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
        asked: the training's settings; method, blocks and seed are the cell's.
        sizes: blocks in a group; every size divides the model anew, the last group may be smaller.
        data_ratio: train on this part of the rows, the first ones; in (0, 1].
        seeds, keep_checkpoints, jobs, fresh, watch: as in `sweep_mask_ratio`.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    _check(methods, ("sft", *WEIGHT_MASKS), seeds)
    rows = _part(source, exact_rate(data_ratio))
    blocks = blocks_of(source.model)
    groups = [(size, group) for size in dict.fromkeys(sizes) for group in groups_of(blocks, size)]
    plans: list[tuple[Setting, Plan]] = [
        ({"method": "ft", "size": 0, "group": "", "seed": 0}, Plan(asked=asked, still=source.model))
    ]
    for method in methods:
        for size, group in [(0, "")] if method == "sft" else groups:
            for seed in range(seeds):
                own = dataclasses.replace(asked, method=method, blocks=group or "all", seed=seed)
                cell = {"method": method, "size": size, "group": group, "seed": seed}
                plans.append((cell, Plan(asked=own, rows=rows)))
    return _run(
        "layer-sweep",
        ("method", "size", "group", "seed"),
        plans,
        source,
        out,
        {
            **_settings(asked, "blocks"),
            "methods": list(methods),
            "sizes": list(sizes),
            "data_ratio": show_rate(exact_rate(data_ratio)),
        },
        facts={"blocks": blocks},
        seeds=seeds,
        keep_checkpoints=keep_checkpoints,
        jobs=jobs,
        fresh=fresh,
        watch=watch,
    )


def sweep_data_ratio(
    methods: Sequence[str],
    source: TrainingData,
    out: str | Path,
    asked: TrainingAsked,
    *,
    ratios: str | Iterable[Rate] = "0.1,0.2,0.5,1",
    seeds: int = 3,
    keep_checkpoints: bool = False,
    jobs: int = 1,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Train on growing parts of the data, always its first rows (MFT, Figures 5 and 9).

    Args:
        methods: of `COMPARED` those that train: `mft`, `sft`, `lora`. The model as it is (`ft`) is
            always beside them, at ratio 0.
        source: the finished model, the data, and what is measured.
        out: the study's folder.
        asked: the training's settings; method and seed are the cell's.
        ratios: parts of the rows, in (0, 1].
        seeds, keep_checkpoints, jobs, fresh, watch: as in `sweep_mask_ratio`.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    _check(methods, ("mft", "sft", "lora"), seeds)
    exact = exact_rates(ratios)
    parts = {ratio: _part(source, ratio) for ratio in exact}
    plans: list[tuple[Setting, Plan]] = [
        ({"method": "ft", "data_ratio": 0.0, "seed": 0}, Plan(asked=asked, still=source.model))
    ]
    for method in methods:
        for ratio in exact:
            for seed in range(seeds):
                own = dataclasses.replace(asked, method=method, seed=seed)
                cell = {"method": method, "data_ratio": float(ratio), "seed": seed}
                plans.append((cell, Plan(asked=own, rows=parts[ratio])))
    return _run(
        "data-ratio-sweep",
        ("method", "data_ratio", "seed"),
        plans,
        source,
        out,
        {
            **_settings(asked),
            "methods": list(methods),
            "ratios": [show_rate(ratio) for ratio in exact],
        },
        seeds=seeds,
        keep_checkpoints=keep_checkpoints,
        jobs=jobs,
        fresh=fresh,
        watch=watch,
    )


def compare(
    methods: Sequence[str],
    source: TrainingData,
    out: str | Path,
    asked: TrainingAsked,
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
        methods: of `COMPARED`; `ft`, the model as it is, is always among them. `sft` goes on
            fine-tuning it with a fresh optimizer and schedule.
        source: the finished model, the data, and what is measured; with `eval_every`, on the way
            as well.
        out: the study's folder.
        asked: the training's settings; method and seed are the cell's.
        base: what the model was tuned from; `base` measures it.
        seeds, keep_checkpoints, jobs, fresh, watch: as in `sweep_mask_ratio`.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    methods = tuple(dict.fromkeys(("ft", *methods)))
    _check(methods, COMPARED, seeds)
    if ("base" in methods) != (base is not None):
        raise DeltaLensError("the method base and the checkpoint of it (--base) go together")
    still = {"base": base, "ft": source.model}
    plans: list[tuple[Setting, Plan]] = []
    for method in methods:
        for seed in range(1 if method in still or method == "l1-mask" else seeds):
            own = asked
            if method not in still:
                own = dataclasses.replace(asked, method=method, seed=seed)
            plans.append(
                ({"method": method, "seed": seed}, Plan(asked=own, still=still.get(method)))
            )
    of_base = {"base": open_checkpoint(base).fingerprint} if base is not None else {}
    return _run(
        "comparison",
        ("method", "seed"),
        plans,
        source,
        out,
        {**_settings(asked), **of_base, "methods": list(methods)},
        seeds=seeds,
        keep_checkpoints=keep_checkpoints,
        jobs=jobs,
        fresh=fresh,
        watch=watch,
    )


def blocks_of(model: str | Path) -> int:
    """How many blocks a checkpoint has, by its tensors' names.

    Raises:
        DeltaLensError: none.
    """
    names = open_checkpoint(model).tensors
    found = {block for name in names if (block := block_of(name)) != name}
    numbers = {int(block.rpartition(".")[2]) for block in found}
    if not numbers:
        raise DeltaLensError(f"{model}: no blocks (names with a number) among its tensors")
    return max(numbers) + 1


def groups_of(blocks: int, size: int) -> list[str]:
    """Groups of consecutive blocks, as `0-3`; the last one may be smaller.

    Raises:
        DeltaLensError: the size is no number from 1 to the blocks there are.
    """
    if not 1 <= size <= blocks:
        raise DeltaLensError(f"groups of {size}: the model has {blocks} blocks")
    ends = [(first, min(first + size, blocks) - 1) for first in range(0, blocks, size)]
    return [f"{first}-{last}" if last > first else str(first) for first, last in ends]


def _check(methods: Sequence[str], known: Sequence[str], seeds: int) -> None:
    unknown = [method for method in methods if method not in known]
    if unknown or not methods:
        raise DeltaLensError(
            f"method {unknown[0] if unknown else ''!r}: choose from {', '.join(known)}"
        )
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: at least 1")


def _part(source: TrainingData, ratio: Fraction) -> int:
    """So many of the rows."""
    if ratio <= 0:
        raise DeltaLensError(f"data ratio {show_rate(ratio)}: in (0, 1]")
    return max(1, round(ratio * len(read_rows(source.data, source.limit, source.fields).rows)))


def _settings(asked: TrainingAsked, *cells_own: str) -> dict[str, Any]:
    settings = asked.identity()
    return {n: v for n, v in settings.items() if n not in ("method", "seed", *cells_own)}


def _run(
    kind: str,
    columns: Sequence[str],
    plans: Sequence[tuple[Setting, Plan]],
    source: TrainingData,
    out: str | Path,
    identity: dict[str, Any],
    *,
    seeds: int,
    **how: Any,
) -> StudyRecord:
    def alone(setting: Setting) -> None:
        """No two cells are one point, and none builds on another."""

    asked = {**identity, "seeds": seeds}
    return run_trainings(kind, columns, plans, source, out, asked, same=alone, after=alone, **how)
