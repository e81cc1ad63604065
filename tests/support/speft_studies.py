"""Study folders of sparse and low-rank tuning, made by hand, with numbers that a test can reckon
with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.io.records import Cell, Measurement, StudyFolder
from tests.support.gmt_studies import close

Values = Mapping[tuple[Any, ...], float]
"""Setting -> exact match."""

_MEANS = {
    "ft": 0.30,
    "sft": 0.95,
    "lora": 0.80,
    "pissa": 0.82,
    "speft:metric=gradient": 0.85,
    "speft:metric=snip": 0.84,
    "speft:metric=magnitude": 0.70,
    "speft:metric=random": 0.60,
}
METHODS: dict[tuple[Any, ...], float] = {
    (method, seed): mean + 0.01 * (seed - 1)
    for method, mean in _MEANS.items()
    for seed in (range(3) if method != "ft" else [1])
}
"""Means in per cent: lora 80, pissa 82, gradient 85, snip 84, magnitude 70; deviation 1."""

MASKS: dict[tuple[Any, ...], float] = {
    (scope, every, seed): mean + 0.01 * (seed - 1)
    for (scope, every), mean in {
        ("tensor", 0): 0.86,
        ("global", 0): 0.85,
        ("global", 100): 0.83,
        ("tensor", 100): 0.80,
        ("layer", 0): 0.84,
    }.items()
    for seed in range(3)
}

DENSITIES: dict[tuple[Any, ...], float] = {
    ("ft", 0.0, 0): 0.3,
    ("sft", 1.0, 0): 0.9,
    **{
        (method, share, seed): value + 0.01 * seed
        for method, values in {
            "lora": (0.50, 0.52, 0.52, 0.53),
            "pissa": (0.51, 0.53, 0.54, 0.54),
            "speft": (0.52, 0.58, 0.63, 0.70),
        }.items()
        for share, value in zip((0.0006, 0.0024, 0.0097, 0.0192), values, strict=True)
        for seed in range(3)
    },
}

_COLUMNS = {
    "comparison": ("method", "seed"),
    "mask-sweep": ("scope", "refresh_every", "seed"),
    "density-sweep": ("method", "rank", "trained", "trained_share", "seed"),
}


def _with_budget(method: str, share: float, seed: int) -> tuple[Any, ...]:
    """A setting of a density sweep, from the share of a model with a million parameters."""
    rank = 0 if share in (0, 1) else round(share * 10_000)
    return method, rank, round(share * 1_000_000), share, seed


def write_study(
    path: Path,
    kind: str,
    values: Values,
    *,
    trained_on: str = "mnli_train",
    sets: Sequence[str] = ("mnli_dev",),
    model: str = "",
    columns: Sequence[str] = (),
    **spec: Any,
) -> Path:
    """A study's folder.

    Args:
        path: the folder.
        kind: of the study.
        values: exact match by setting; on the second data set 0.1 less, and so on. A loss is one
            minus the exact match.
        trained_on, sets: names of data files.
        model: the name of the model's folder.
        columns: other columns than those of the kind.
        spec: what else the specification says.
    """
    columns = columns or _COLUMNS[kind]
    known: dict[str, Any] = {
        "data": [trained_on, 1500, "d"],
        "eval_data": [[name, 300, name] for name in sets],
        "seeds": 3,
    }
    if "method" in columns:
        known["methods"] = list(dict.fromkeys(setting[0] for setting in values))
    study = StudyFolder.open(path, kind, {**known, **spec}, columns)
    study.facts = {"model": f"models/{model}"} if model else {}
    study.write_manifest()
    for given, value in values.items():
        setting = _with_budget(*given) if kind == "density-sweep" else given
        metrics = {}
        for place, name in enumerate(sets):
            prefix, own = f"{name}/" if len(sets) > 1 else "", value - 0.1 * place
            metrics[f"{prefix}loss"] = Measurement(1 - own, 0.01, 300)
            metrics[f"{prefix}exact_match"] = Measurement(own, 0.02, 300)
            metrics[f"{prefix}perplexity"] = Measurement(2.0, 0.04, 300)
        metrics["training_loss"] = Measurement(0.1)
        study.append(Cell(dict(zip(columns, setting, strict=True)), metrics, 1.0))
    close(study)
    return path


def comparison(path: Path, values: Values = METHODS, **more: Any) -> Path:
    """A comparison's folder; see `write_study`."""
    return write_study(path, "comparison", values, **more)


def less(by: float) -> Values:
    """The same methods with lower numbers."""
    return {setting: value - by for setting, value in METHODS.items()}


def two_tasks(path: Path, **more: Any) -> list[Path]:
    """Two comparisons. Of the second task all numbers are 5 points lower, but for a PiSSA that is
    best: 93 with deviation 3."""
    second = {key: 0.9 + 0.03 * key[1] if key[0] == "pissa" else v for key, v in less(0.05).items()}
    return [
        comparison(path / "mnli", **more),
        comparison(path / "mrpc", second, trained_on="mrpc_train", sets=["mrpc_dev"], **more),
    ]
