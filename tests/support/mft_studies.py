"""Study folders of masks on a fine-tune, made by hand, with numbers that a test can reckon with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.io.records import Cell, Measurement, StudyFolder
from tests.support.gmt_studies import close

Values = Mapping[tuple[Any, ...], float]
"""Setting -> exact match."""

COMPARED: dict[tuple[Any, ...], float] = {
    ("base", 0): 0.1,
    ("ft", 0): 0.7,
    ("sft", 0): 0.68,
    ("sft", 1): 0.72,
    ("lora", 0): 0.5,
    ("lora", 1): 0.54,
    ("mft", 0): 0.71,
    ("mft", 1): 0.77,
    ("random-mask-weights", 0): 0.6,
    ("random-mask-weights", 1): 0.64,
    ("l1-mask", 0): 0.65,
}
"""Means: sft 70, lora 52, mft 74, random 62 per cent."""

RATIOS: dict[tuple[Any, ...], float] = {
    ("ft", 0.0, 0): 0.7,
    ("sft", 0.0, 0): 0.68,
    ("sft", 0.0, 1): 0.72,
    **{
        (method, ratio, seed): value - 0.02 * seed
        for method, values in {
            "mft": (0.72, 0.76, 0.71, 0.6),
            "random-mask-weights": (0.69, 0.62, 0.5, 0.3),
            "l1-mask": (0.7, 0.67, 0.6, 0.45),
        }.items()
        for ratio, value in zip((0.02, 0.1, 0.2, 0.4), values, strict=True)
        for seed in range(2 if method != "l1-mask" else 1)
    },
}

DATA_RATIOS: dict[tuple[Any, ...], float] = {
    ("ft", 0.0, 0): 0.7,
    **{
        (method, ratio, seed): value + 0.02 * seed
        for method, values in {"mft": (0.69, 0.72, 0.75), "sft": (0.64, 0.68, 0.7)}.items()
        for ratio, value in zip((0.1, 0.5, 1.0), values, strict=True)
        for seed in range(2)
    },
}


def layers(blocks: int = 8, sizes: Sequence[int] = (1, 2, 4), seeds: int = 2) -> Values:
    """A sweep over groups of blocks: the first block answers best."""
    found: dict[tuple[Any, ...], float] = {("ft", 0, "", 0): 0.7}
    found |= {("sft", 0, "", seed): 0.68 + 0.02 * seed for seed in range(seeds)}
    for size in sizes:
        for first in range(0, blocks, size):
            group = f"{first}-{first + size - 1}" if size > 1 else str(first)
            for seed in range(seeds):
                value = 0.76 - 0.015 * first - 0.02 * size + 0.02 * seed
                found["mft", size, group, seed] = value
    return found


def dropped(blocks: int = 8, sizes: Sequence[int] = (1, 2)) -> Values:
    """The same without training."""
    found: dict[tuple[Any, ...], float] = {("ft", 0, "", 0): 0.7, ("base", 0, "", 0): 0.1}
    for size in sizes:
        for first in range(0, blocks, size):
            group = f"{first}-{first + size - 1}" if size > 1 else str(first)
            found["drop", size, group, 0] = 0.65 - 0.04 * size + 0.01 * first
            found["keep", size, group, 0] = 0.12 + 0.03 * size
    return found


_COLUMNS = {
    "comparison": ("method", "seed"),
    "mask-ratio-sweep": ("method", "mask_ratio", "seed"),
    "data-ratio-sweep": ("method", "data_ratio", "seed"),
    "layer-sweep": ("method", "size", "group", "seed"),
}


def write_study(
    path: Path,
    kind: str,
    values: Values,
    *,
    trained_on: str = "maths_train",
    sets: Sequence[str] = ("maths_test",),
    measured_at: Sequence[int] = (),
    facts: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Path:
    """A study's folder.

    Args:
        path: the folder.
        kind: of the study.
        values: exact match by setting; on the second data set 0.1 less, and so on. A loss is one
            minus the exact match.
        trained_on, sets: names of data files.
        measured_at: steps at which trained methods were measured, at each 0.05 below the next.
        facts: what was found out.
        spec: what else the study was asked.
    """
    known = {
        "data": [trained_on, 1500, "d"],
        "eval_data": [[name, 300, name] for name in sets],
        "methods": list(dict.fromkeys(setting[0] for setting in values)),
        "seeds": 2,
    }
    if kind == "comparison":
        known["settings"] = {"lora": {"from": "base"}, "lora-continued": {"from": "base"}}
    columns = _COLUMNS[kind]
    study = StudyFolder.open(path, kind, {**known, **spec}, columns)
    study.facts = dict(facts or {})
    study.write_manifest()
    for setting, value in values.items():
        trained = setting[0] in ("sft", "lora", "lora-continued", "mft")
        times = [f"@{step}" for step in measured_at] if trained else []
        metrics = {}
        for place, name in enumerate(sets):
            prefix = f"{name}/" if len(sets) > 1 else ""
            for back, time in enumerate([*times, ""]):
                own = value - 0.1 * place - 0.05 * (len(times) - back)
                metrics[f"{prefix}exact_match{time}"] = Measurement(own, 0.02, 300)
                metrics[f"{prefix}loss{time}"] = Measurement(1 - own, 0.01, 300)
                metrics[f"{prefix}perplexity{time}"] = Measurement(2.0, 0.04, 300)
        metrics["training_loss"] = Measurement(0.1)
        study.append(Cell(dict(zip(columns, setting, strict=True)), metrics, 1.0))
    close(study)
    return path
