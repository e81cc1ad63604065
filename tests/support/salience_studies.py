"""A finished salience study, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalens.io.records import Cell, Measurement, StudyFolder

BLOCKS, LAYERS = ("model.layers.0", "model.layers.1"), ("self_attn.q_proj", "self_attn.v_proj")
SIZE, KEPT = 1000, 40
"""Weights of a layer, and of all those a mask keeps."""
DENSITIES: Mapping[str, tuple[float, ...]] = {
    "gradient": (0.0, 0.03, 0.0, 0.01),
    "snip": (0.01, 0.01, 0.01, 0.01),
    "random": (0.01, 0.01, 0.01, 0.01),
}
"""Of each metric, block by block and layer by layer."""
AGREEMENT: Mapping[tuple[str, str], float] = {
    ("gradient", "snip"): 0.25,
    ("gradient", "random"): 0.0,
    ("snip", "random"): 0.01,
}
"""The Jaccard index of two metrics' masks."""
FACTS: Mapping[str, Any] = {
    "entries": 4000,
    "parameters": 20_000,
    "model_bytes": 80_000,
    "batches": 4,
    "examples": 8,
    "rows": 200,
    "seconds_of_pass": 0.5,
    "seconds": {"all": 3.0},
    "notes": [],
}


def make_salience_study(
    folder: Path, *parts: str, agreement: Mapping[tuple[str, str], float] = AGREEMENT
) -> Path:
    """A study of three metrics.

    Args:
        folder: Where to.
        parts: What was measured beside the budgets: `sample`, `agreement`, `fine-tune`.
        agreement: How far metrics agree, if that was measured.
    """
    spec = {
        "salience": [*DENSITIES],
        "density": "0.01",
        "batch_size": 2,
        "data": [["rows.jsonl", 200, "ab"]],
    }
    study = StudyFolder.open(folder, "salience", spec, ("salience", "part", "of"))
    study.facts = dict(FACTS)
    study.write_manifest()
    cells = [cell for metric in DENSITIES for cell in _budget(metric)]
    if "sample" in parts:
        cells += [
            _overlap(metric, "sample", of, value, examples=Measurement(examples))
            for metric, values in (("gradient", (0.5, 0.95)), ("snip", (0.4, 0.3)))
            for (of, examples), value in zip((("1/2", 4), ("halves", 4)), values, strict=True)
        ]
    if "agreement" in parts:
        cells += [_overlap(one, "agreement", of, value) for (one, of), value in agreement.items()]
    if "fine-tune" in parts:
        cells += [
            _overlap(metric, "fine-tune", "largest changes", value)
            for metric, value in (("gradient", 0.2), ("snip", 0.1), ("random", 0.005))
        ]
    study.extend(cells)
    study.write_table([cell.setting for cell in cells])
    study.close()
    return folder


def _budget(metric: str) -> list[Cell]:
    places = ["all", *(f"{block}/{layer}" for block in BLOCKS for layer in LAYERS)]
    sizes = [4 * SIZE, *[SIZE] * 4]
    return [
        Cell(
            {"salience": metric, "part": "budget", "of": place},
            {
                "density": Measurement(density, n=size),
                "kept": Measurement(round(density * size), n=size),
            },
            0.0,
        )
        for place, size, density in zip(
            places, sizes, (KEPT / (4 * SIZE), *DENSITIES[metric]), strict=True
        )
    ]


def _overlap(metric: str, part: str, of: str, jaccard: float, **more: Measurement) -> Cell:
    values = {"jaccard": Measurement(jaccard, n=KEPT), "chance": Measurement(0.005, n=4000)}
    return Cell({"salience": metric, "part": part, "of": of}, {**values, **more}, 0.0)
