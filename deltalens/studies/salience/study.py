"""The salience study: which weights each metric chooses, and how far the choices agree (SPEFT)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deltalens.catalog.salience import check_metrics
from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.matching import pair
from deltalens.io.pairing import Pairing
from deltalens.io.records import (
    Setting,
    StudyFolder,
    StudyRecord,
    check_study_folder,
    load_study,
)
from deltalens.methods.salience import HessianWay, Targets
from deltalens.names import check_scope
from deltalens.numerics.rates import Rate, exact_rate
from deltalens.scoring.loading import LoadedModel, Loading, pick_device, pick_dtype
from deltalens.scoring.placement import DeviceMap, check_device_map, check_gradients
from deltalens.scoring.planning import plan_salience
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile, read_files
from deltalens.scoring.tokens import encode_rows, padding_of
from deltalens.studies.engine import StudyWatch, read_weights, run_cells
from deltalens.studies.salience.rows import calibration_batches
from deltalens.studies.salience.spec import ALL, GROWS, SalienceSpec, in_catalog_order
from deltalens.studies.salience.worker import UNIT, SalienceWorker
from deltalens.training.objectives import Objective
from deltalens.training.spec import TrainingSpec

__all__ = ["KIND", "salience_study"]

KIND = "salience"


def salience_study(
    model: str | Path,
    data: Sequence[str | Path],
    out: str | Path,
    *,
    metrics: str | Sequence[str] = "all",
    density: Rate = "0.005",
    scope: str = "global",
    targets: Targets = "attention",
    steps: int = 64,
    batch_size: int = 16,
    max_length: int | None = None,
    expectation: str = "inside",
    sign: int = 1,
    hessian: HessianWay = "exact",
    seed: int = 0,
    against: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Mask a model's weights by every metric, and compare the masks.

    Args:
        model: a checkpoint folder.
        data: files of rows to compute losses on; their completions are the targets.
        out: the study's folder.
        metrics: names of metrics, or `all`; a later call may add some.
        density: the fraction of each ranked unit that a mask keeps.
        scope: what is ranked together.
        targets: the layers whose weights are ranked; see `choose_targets`.
        steps: the number of calibration batches.
        batch_size: rows per batch.
        max_length: the longest row in tokens; None: what the model takes.
        expectation: of the metrics that see data.
        sign: GRaSP's.
        hessian: how GRaSP multiplies with the Hessian.
        seed: of the rows' order, ties, and `random`.
        against: a fine-tune of the model, whose largest changes the masks are compared with.
        fields: names of fields in the data, where they differ from ours.
        limit: rows to read of each file; None: all.
        device: where the model is loaded.
        device_map: how accelerate spreads it over several devices, instead of `device`.
        dtype: how; `auto`: as the checkpoint is.
        trust_remote_code: run code that the model brings.
        fresh: discard any other study in the folder.
        watch: told of stages, progress and finished cells.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    spec = SalienceSpec(
        metrics=in_catalog_order(check_metrics(metrics)),
        density=exact_rate(density, "density"),
        scope=check_scope(scope),
        targets=targets,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        expectation="outside" if expectation == "outside" else "inside",
        sign=sign,
        hessian=hessian,
        seed=seed,
        against=against is not None,
    )
    _check(spec, expectation)
    files = read_files(data, limit, fields)
    if not files:
        raise DeltaLensError("no data: name a file of rows to take the loss of")
    checkpoint = open_checkpoint(model)
    pairing = None if against is None else pair(against, model)
    checkpoints = [checkpoint, *([] if pairing is None else [pairing.ft])]
    check_device_map(device_map, device)
    on_device = pick_device(device)
    as_dtype = pick_dtype(dtype, checkpoint)
    check_study_folder(out, [each.path for each in checkpoints])
    loading = Loading(as_dtype, on_device, trust_remote_code, device_map)
    loading.check_fits(checkpoint, batch_size * (max_length or 1))
    if watch.on_plan is not None:
        count = len(spec.points(steps))
        watch.on_plan(
            plan_salience(count, checkpoints, files, steps * batch_size, as_dtype, on_device)
        )
    read_weights(watch, *checkpoints)
    identity = {
        **spec.identity(),
        **_where(checkpoint, pairing, files, as_dtype, on_device, trust_remote_code),
    }
    columns = STUDIES[KIND].columns
    with StudyFolder.open(out, KIND, identity, columns, fresh, GROWS) as folder:
        spec = spec.grown(folder.spec)
        if not folder.cells or _left(folder, spec.points(folder.facts["batches"])):
            watch.stage("loading the model", None)
            loaded = loading.load(checkpoint)
            check_gradients(loaded.model)
            _measure(spec, loaded, files, folder, pairing, watch)
        else:
            folder.write_finished([cell.setting for cell in folder.cells])
    return load_study(out)


def _check(spec: SalienceSpec, expectation: str) -> None:
    if not spec.density:
        raise DeltaLensError("density 0 is outside (0, 1]")
    if spec.steps < 1 or spec.batch_size < 1:
        raise DeltaLensError(
            f"steps {spec.steps}, batch_size {spec.batch_size}: must be at least 1"
        )
    if expectation not in ("inside", "outside"):
        raise DeltaLensError(f"expectation {expectation!r}: choose inside or outside")
    if spec.hessian not in ("exact", "difference"):
        raise DeltaLensError(f"hessian {spec.hessian!r}: choose exact or difference")
    if spec.sign not in (1, -1):
        raise DeltaLensError(f"sign {spec.sign}: choose 1 or -1")


def _where(
    checkpoint: Checkpoint,
    pairing: Pairing | None,
    files: Sequence[DataFile],
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """The model, the rows and the place, for the study's identity."""
    return {
        "model": checkpoint.identity,
        "against": [] if pairing is None else [pairing.ft.identity],
        "data": [file.identity for file in files],
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        **({"trust_remote_code": True} if trust_remote_code else {}),
    }


def _left(folder: StudyFolder, points: Sequence[Setting]) -> list[Setting]:
    done = {repr(cell.setting) for cell in folder.cells}
    return [point for point in points if repr(point) not in done]


def _measure(
    spec: SalienceSpec,
    loaded: LoadedModel,
    files: Sequence[DataFile],
    folder: StudyFolder,
    pairing: Pairing | None,
    watch: StudyWatch,
) -> None:
    model, tokenizer = loaded.model, loaded.tokenizer
    Objective(TrainingSpec()).check_trainable(model, tokenizer, folder.path)
    longest = spec.max_length or longest_input(model)
    encoded = [encode_rows(file, tokenizer, longest, model) for file in files]
    sequences = [sequence for found, _ in encoded for sequence in found]
    left_out = sum(count for _, count in encoded)
    padding = padding_of(tokenizer, model)
    batches = calibration_batches(sequences, spec.steps, spec.batch_size, spec.seed, padding)
    points = spec.points(len(batches))
    worker = SalienceWorker(
        spec, loaded, batches, folder.path, pairing, _left(folder, points), watch
    )
    notes = list(folder.facts.get("notes", []))
    if left_out:
        notes.append(f"{left_out:,} rows were left out: too long, or without a token to predict")
    if len(batches) < spec.steps and spec.with_data:
        notes.append(
            f"the rows make only {len(batches)} of {spec.steps} calibration batches: what there is "
            "was used"
        )
    folder.facts |= {
        **worker.facts(),
        "rows": len(sequences),
        "seconds_of_pass": worker.time_a_pass(),
        "seconds": dict(folder.facts.get("seconds", {})),
        "notes": [*dict.fromkeys(notes)],
    }
    folder.write_manifest()
    with contextlib.closing(worker):
        try:
            run_cells(
                folder,
                points,
                None,
                worker,
                watch,
                cells_of=lambda setting, measured: measured,
                write_table=lambda: folder.write_table(_in_order(folder, points)),
                unit=UNIT,
            )
        finally:
            folder.facts["seconds"] |= worker.seconds
            folder.facts["notes"] = [*dict.fromkeys([*folder.facts["notes"], *worker.notes])]
            folder.write_manifest()


def _in_order(folder: StudyFolder, points: Sequence[Setting]) -> list[Setting]:
    """The settings of all cells in the order of the points, whenever they were measured."""
    order = {repr((each["salience"], each["part"], each["of"])): n for n, each in enumerate(points)}

    def position(setting: Setting) -> int:
        of = ALL if setting["part"] == "budget" else setting["of"]
        # This call may not name the fine-tune that an earlier one did.
        return order.get(repr((setting["salience"], setting["part"], of)), len(order))

    return sorted((cell.setting for cell in folder.cells), key=position)
