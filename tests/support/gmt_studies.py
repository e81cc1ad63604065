"""Study folders made by hand, with numbers that a test can reckon with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalens.io.records import Cell, Measurement, StudyFolder

Point = tuple[str, float, int]
"""Method, mask ratio, seed."""

EXACT: dict[Point, float] = {
    ("sft", 0.0, 0): 0.5,
    ("sft", 0.0, 1): 0.7,
    ("gmt", 0.0, 0): 0.5,
    ("gmt", 0.0, 1): 0.7,
    ("gmt", 0.2, 0): 0.59,
    ("gmt", 0.2, 1): 0.81,
    ("gmt", 0.5, 0): 0.55,
    ("gmt", 0.5, 1): 0.75,
    ("gmt", 0.9, 0): 0.47,
    ("gmt", 0.9, 1): 0.67,
    ("hft", 0.0, 0): 0.4,
    ("hft", 0.0, 1): 0.4,
}
"""Exact match; means: sft 60, gmt 60, 70, 65 and 57, hft 40 per cent."""


def close(study: StudyFolder) -> None:
    """Close a study; one without a cell stays, as a killed process leaves it."""
    study.write_manifest()
    manifest = study.path / "study.json"
    content = manifest.read_bytes()
    study.close()
    if not manifest.exists():
        study.path.mkdir(parents=True, exist_ok=True)
        manifest.write_bytes(content)


def write_sweep(
    path: Path,
    values: Mapping[Point, float],
    sets: tuple[str, ...] = ("maths",),
    objective: str = "sft",
    **more: Any,
) -> Path:
    """A sweep's folder. Exact match on the second data set is 10 per cent points less; a loss is
    one minus the exact match. `model` is the name of the model; `more` what else it was asked."""
    model = more.pop("model", "")
    spec = {
        "methods": ["sft", "gmt", "hft"],
        "ratios": ["0", "0.2", "0.5", "0.9"],
        "seeds": 2,
        "objective": objective,
        "eval_data": [[name, 100, ""] for name in sets],
        **more,
    }
    columns = ("method", "mask_ratio", "seed")
    study = StudyFolder.open(path, "mask-ratio-sweep", spec, columns)
    study.facts = {"model": f"models/{model}"} if model else {}
    for (method, ratio, seed), value in values.items():
        metrics = {}
        for place, name in enumerate(sets):
            prefix, own = f"{name}/" if len(sets) > 1 else "", value - 0.1 * place
            metrics[f"{prefix}exact_match"] = Measurement(own, 0.04, 100)
            metrics[f"{prefix}loss"] = Measurement(1 - own, 0.04, 100)
            metrics[f"{prefix}perplexity"] = Measurement(2.0, 0.04, 100)
        metrics["training_loss"] = Measurement(0.1)
        study.append(Cell({"method": method, "mask_ratio": ratio, "seed": seed}, metrics, 1.0))
    close(study)
    return path


def write_efficiency(path: Path, speeds: Mapping[str, list[float]]) -> Path:
    """An efficiency study's folder: samples per second of each method's blocks."""
    spec = {"methods": ["sft", "random-mask", "gmt"], "batch_size": 8, "dtype": "float32"}
    study = StudyFolder.open(path, "efficiency", {**spec, "device": "cpu"}, ("method", "repeat"))
    study.facts |= {"flops_of_a_step": 2_500_000_000, "parameters": 1234}
    study.write_manifest()
    for method, own in speeds.items():
        for repeat, speed in enumerate(own):
            metrics = {
                "samples_per_second": Measurement(speed),
                "hook_share": Measurement(0.05),
                "peak_mb": Measurement(600.0 + repeat),
            }
            study.append(Cell({"method": method, "repeat": repeat}, metrics, 1.0))
    close(study)
    return path
