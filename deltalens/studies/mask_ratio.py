"""The mask-ratio sweep: what a method reaches at growing mask ratios (GMT, Figure 2)."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.evaluate.loading import load_model, pick_device, pick_dtype
from deltalens.evaluate.rows import DataFile, read_rows
from deltalens.evaluate.scoring import Scoring
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.records import (
    Measurement,
    Setting,
    StudyFolder,
    StudyRecord,
    check_study_folder,
    load_study,
)
from deltalens.numerics.rates import Rate, exact_rates, show_rate
from deltalens.studies.drop import drop
from deltalens.studies.study import Metrics, StudyWatch, run_cells
from deltalens.training.asked import TrainingAsked
from deltalens.training.run import Trained, TrainingWatch, train

__all__ = ["COLUMNS", "KIND", "sweep_mask_ratio"]

KIND = "mask-ratio-sweep"
COLUMNS = ("method", "mask_ratio", "seed")
_WITH_RATIO = ("gmt", "random-mask", "one-off-drop")
_WITHOUT = ("sft", "hft")
_KEPT, _CELL, _SFT = "checkpoints", ".cell", ".sft"


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

    A cell is a training; of `one-off-drop` it is a drop of the smallest deltas of the plain
    fine-tune (at the mask ratio as drop rate). Ratio 0 is plain fine-tuning to the last bit, and is
    trained once. The same call again goes on where this one stopped.

    Args:
        methods: `gmt`, `random-mask`, `one-off-drop`; and `hft`, which knows no ratio. Plain
            fine-tuning (`sft`) is always among them.
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
    methods = tuple(dict.fromkeys(("sft", *methods)))
    known = (*_WITHOUT, *_WITH_RATIO)
    unknown = [method for method in methods if method not in known]
    if unknown:
        raise DeltaLensError(f"method {unknown[0]!r}: choose from {', '.join(known)}")
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
        for method in methods
        for ratio in (exact if method in _WITH_RATIO else [Fraction(0)])
        for seed in range(seeds)
    ]
    sitting = _Sweep(
        out=out,
        base=checkpoint,
        data=data,
        asked=asked,
        names={float(ratio): show_rate(ratio) for ratio in exact},
        files=measured,
        options={
            "fields": fields,
            "limit": limit,
            "eval_data": eval_data,
            "device": device,
            "dtype": dtype,
            "watch": training,
        },
        keep_sft="one-off-drop" in methods,
        keep=keep_checkpoints,
    )
    study = StudyFolder.open(out, KIND, identity, COLUMNS, fresh)
    try:
        study.facts |= {"model": str(checkpoint.path)}
        study.write_manifest()
        run_cells(study, cells, sitting.cell, watch, _same_point)
        shutil.rmtree(out / _SFT, ignore_errors=True)
    finally:
        shutil.rmtree(out / _CELL, ignore_errors=True)
        study.close()
    return load_study(out)


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What makes and measures one cell."""

    out: Path
    base: Checkpoint
    data: str | Path
    asked: TrainingAsked
    names: Mapping[float, str]
    """Mask ratio -> as it was typed."""
    files: Sequence[DataFile]
    options: Mapping[str, Any]
    """As `train` takes them."""
    keep_sft: bool
    """Plain fine-tunes are needed again, for one-off drops."""
    keep: bool
    """Every trained model is kept."""

    def cell(self, setting: Setting) -> Metrics:
        """Train, or drop; and measure."""
        if setting["method"] == "one-off-drop":
            return self._drop(setting)
        folder = self.out / _CELL
        trained = self._train(setting["method"], setting, folder)
        found = {**trained.metrics, "training_loss": Measurement(trained.loss)}
        if setting["method"] == "sft" and self.keep_sft:
            self._copy(folder, self._sft(setting["seed"]))
        if self.keep:
            name = f"{setting['method']}-{setting['mask_ratio']:g}-seed-{setting['seed']}"
            self._copy(folder, self.out / _KEPT / name)
        return found

    def _train(self, method: str, setting: Setting, folder: Path) -> Trained:
        shutil.rmtree(folder, ignore_errors=True)
        own = dataclasses.replace(
            self.asked,
            method=method,
            mask_ratio=self.names[setting["mask_ratio"]] if method in _WITH_RATIO else "0",
            seed=setting["seed"],
        )
        trained = train(
            self.base.path, self.data, folder, own, checkpoint_every=1 << 30, **self.options
        )
        if not trained.finished:
            raise KeyboardInterrupt
        return trained

    def _drop(self, setting: Setting) -> Metrics:
        sft, dropped = self._sft(setting["seed"]), self.out / _CELL
        if not sft.exists():
            self._train("sft", setting, dropped)
            self._copy(dropped, sft)
        shutil.rmtree(dropped, ignore_errors=True)
        drop(
            sft,
            self.base.path,
            dropped,
            strategy="trivial",
            rate=self.names[setting["mask_ratio"]],
            scope=self.asked.scope,
        )
        checkpoint = open_checkpoint(dropped)
        device = pick_device(self.options["device"])
        loaded = load_model(checkpoint, pick_dtype(self.options["dtype"], checkpoint), device)
        found: Metrics = {}
        for file in self.files:
            prefix = f"{file.name}/" if len(self.files) > 1 else ""
            scoring = Scoring(file, loaded.model, loaded.tokenizer, 4096)
            found |= {prefix + name: m for name, m in scoring.measure(loaded.model).items()}
        return found

    def _sft(self, seed: int) -> Path:
        return self.out / _SFT / f"seed-{seed}"

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        """Whole or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        partial = target.with_name(f".{target.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(target)


def _same_point(setting: Setting) -> str | None:
    """At mask ratio 0 nothing is masked: plain fine-tuning, whatever the method."""
    plain = setting["mask_ratio"] == 0 and setting["method"] != "hft"
    return f"sft {setting['seed']}" if plain else None
