"""The mask-ratio sweep: what a method reaches at growing mask ratios (GMT, Figure 2)."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.evaluate.rows import read_rows
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import (
    Measurement,
    Setting,
    StudyFolder,
    StudyRecord,
    check_study_folder,
    load_study,
)
from deltalens.numerics.rates import Rate, exact_rates, show_rate
from deltalens.studies.study import Metrics, StudyWatch, run_cells
from deltalens.training.asked import TrainingAsked
from deltalens.training.run import Trained, TrainingWatch, train

__all__ = ["COLUMNS", "KIND", "RATIO_METHODS", "sweep_mask_ratio"]

KIND = "mask-ratio-sweep"
COLUMNS = ("method", "mask_ratio", "seed")
RATIO_METHODS = ("gmt", "random-mask")
_KEPT, _CELL = "checkpoints", ".cell"


def sweep_mask_ratio(
    methods: Sequence[str],
    model: str | Path,
    data: str | Path,
    eval_data: Sequence[str | Path],
    out: str | Path,
    asked: TrainingAsked,
    *,
    ratios: str | Iterable[Rate] = "0:0.9:0.1,0.95,0.99",
    seeds: int = 3,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    keep_checkpoints: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    fresh: bool = False,
    watch: StudyWatch | None = None,
    training: TrainingWatch | None = None,
) -> StudyRecord:
    """Train at every mask ratio and seed, beside plain fine-tuning, and measure what comes out.

    A cell is a training. Ratio 0 is plain fine-tuning to the last bit, and is trained once. The
    same call again goes on where this one stopped.

    Args:
        methods: `gmt`, `random-mask`.
        model, data, fields, limit, device, dtype: as `train` takes them.
        eval_data: what is measured after each training.
        out: the study's folder.
        asked: the training's settings; its method, mask ratio and seed are the cell's.
        ratios: mask ratios, as "0:0.9:0.1,0.95" or as numbers.
        seeds: how many trainings at each ratio.
        keep_checkpoints: keep every trained model in the study's `checkpoints`.
        fresh: discard what the folder holds of another study.
        watch: told of stages, progress and finished cells.
        training: told of each training's steps.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    exact = sorted({Fraction(0), *exact_rates(ratios)})
    if exact[-1] >= 1:
        raise DeltaLensError(f"mask ratio {show_rate(exact[-1])}: in [0, 1)")
    unknown = [method for method in methods if method not in RATIO_METHODS]
    if unknown or not methods:
        raise DeltaLensError(f"method {(unknown or ['none'])[0]}: choose from gmt, random-mask")
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: at least 1")
    if not eval_data:
        raise DeltaLensError("a sweep needs data to measure on: --eval-data")
    rows = read_rows(data, limit, fields)
    measured = [read_rows(path, None, fields) for path in eval_data]
    checkpoint = open_checkpoint(model)
    check_study_folder(out, [checkpoint.path])
    settings = asked.identity()
    for cells_own in ("method", "mask_ratio", "seed"):
        del settings[cells_own]
    identity: dict[str, Any] = {
        **settings,
        "methods": list(methods),
        "ratios": [show_rate(ratio) for ratio in exact],
        "seeds": seeds,
        "model": checkpoint.fingerprint,
        "data": [rows.name, len(rows.rows), rows.digest],
        "eval_data": [[file.name, len(file.rows), file.digest] for file in measured],
        "device": device,
        "dtype": dtype,
    }
    cells: list[Setting] = [
        {"method": method, "mask_ratio": float(ratio), "seed": seed}
        for method in ("sft", *methods)
        for ratio in (exact if method != "sft" else [Fraction(0)])
        for seed in range(seeds)
    ]
    names = {float(ratio): show_rate(ratio) for ratio in exact}

    def cell(setting: Setting) -> Metrics:
        folder = out / _CELL
        shutil.rmtree(folder, ignore_errors=True)
        own = dataclasses.replace(
            asked,
            method=setting["method"],
            mask_ratio=names[setting["mask_ratio"]],
            seed=setting["seed"],
        )
        trained = train(
            checkpoint.path,
            data,
            folder,
            own,
            fields=fields,
            limit=limit,
            eval_data=eval_data,
            device=device,
            dtype=dtype,
            checkpoint_every=1 << 30,
            watch=training,
        )
        return _measured(trained, folder, out, setting, keep_checkpoints)

    study = StudyFolder.open(out, KIND, identity, COLUMNS, fresh)
    try:
        study.facts |= {"model": str(checkpoint.path)}
        study.write_manifest()
        run_cells(study, cells, cell, watch, _same_point)
    finally:
        shutil.rmtree(out / _CELL, ignore_errors=True)
        study.close()
    return load_study(out)


def _measured(
    trained: Trained, folder: Path, out: Path, setting: Setting, keep: bool
) -> dict[str, Measurement]:
    if not trained.finished:
        raise KeyboardInterrupt
    if keep:
        name = f"{setting['method']}-{setting['mask_ratio']:g}-seed-{setting['seed']}"
        kept = out / _KEPT / name
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
    return {**trained.metrics, "training_loss": Measurement(trained.loss)}


def _same_point(setting: Setting) -> str | None:
    """At mask ratio 0 nothing is masked: plain fine-tuning, whatever the method."""
    return f"sft {setting['seed']}" if setting["mask_ratio"] == 0 else None
