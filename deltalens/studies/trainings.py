"""Studies whose cells are trainings: the model of each cell is made, measured, and deleted."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.catalog.studies import columns_of
from deltalens.errors import DeltaLensError, RecordError, describe_error
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import (
    Setting,
    StudyFolder,
    StudyRecord,
    Union,
    check_study_folder,
    load_study,
    recorded_settings,
)
from deltalens.scoring.loading import pick_device
from deltalens.scoring.planning import plan_training
from deltalens.scoring.rows import read_files, read_rows
from deltalens.studies import axes
from deltalens.studies.cell_maker import CELL, CHECKPOINTS, RESULTS, CellMaker
from deltalens.studies.engine import StudyWatch, count_points, read_weights, run_cells
from deltalens.studies.executors import Execution
from deltalens.studies.rate_grid import GRID, check_choosing, check_grid, over_rates
from deltalens.studies.training_notes import gather_notes
from deltalens.studies.training_plans import (
    Plan,
    Plans,
    PointOf,
    TrainingData,
    known_methods,
    recorded_labels,
)
from deltalens.training.methods import Method
from deltalens.training.prepare import training_dtype
from deltalens.training.settling import check_head, settled
from deltalens.training.spec import TrainingSpec

__all__ = ["run_trainings"]


def run_trainings(
    kind: str,
    plans: Plans,
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    methods: Sequence[Method],
    settings: Mapping[str, Mapping[str, Any]],
    seeds: int,
    extra_spec: Mapping[str, tuple[Any, Union | None]],
    point_of: PointOf = lambda setting, plan: None,
    requires: PointOf = lambda setting, plan: None,
    keep_checkpoints: bool,
    execution: Execution,
    fresh: bool,
    watch: StudyWatch | None,
    facts: Mapping[str, Any] | None = None,
    learning_rates: Sequence[float] = (),
) -> StudyRecord:
    """Make and measure the model of every cell.

    Args:
        kind: of the study.
        plans: from the study's specification to its cells.
        source: the model, and the data for training and evaluation.
        out: the study's folder.
        spec: the settings that all trainings share.
        methods: in any order.
        settings: the own settings of each method by its label, in the order of the table.
        seeds: number of trainings at each point.
        extra_spec: further entries of the study's specification: name -> (JSON value, how values
            are merged when the study grows; None: it cannot grow).
        point_of, requires: see `PointOf`.
        execution: as `run_cells` takes it.
        keep_checkpoints: keep every trained model in the study's folder `checkpoints`.
        fresh: discard any other study in the folder.
        watch: told of stages, progress and finished cells.
        facts: further facts for the records.
        learning_rates: if set, the study has each training at each of these peak rates.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    recorded = {} if fresh else recorded_settings(out)
    settings = recorded_labels(settings, methods, recorded)
    identity = {
        **spec.shared(),
        "methods": [*settings],
        **{name: value for name, (value, _) in extra_spec.items()},
        "seeds": seeds,
        "settings": settings,
    }
    grows = _axes(kind, extra_spec)
    if learning_rates:
        grid = check_grid(learning_rates, source.choose_on)
        identity[GRID] = grid
        grows[GRID] = axes.numbers
        plans = over_rates(plans)
    first_plans = plans(identity)
    count = count_points(
        (setting for setting, _ in first_plans), _of_setting(point_of, first_plans)
    )
    rows = read_rows(source.data, source.limit, source.fields)
    files = read_files(source.eval_data, None, source.fields)
    choosing = read_rows(source.choose_on, None, source.fields) if source.choose_on else None
    if learning_rates and choosing is not None:
        check_choosing(choosing, files)
    checkpoint = open_checkpoint(source.model)
    held_out = (*files, choosing) if choosing is not None else files
    spec = settled(spec, checkpoint.config, rows, held_out)
    tasks = source.tasks
    if tasks is not None and spec.objective in ("classification", "regression"):
        raise DeltaLensError(
            f"objective {spec.objective}: its models generate no text, so there are no tasks for "
            "them; leave tasks out"
        )
    identity |= spec.shared()
    if learning_rates:
        identity["learning_rate"] = None
    device = pick_device(source.device)
    execution.check(device)
    check_study_folder(out, [checkpoint.path])
    if watch.on_plan is not None:
        plan = plan_training(
            "trainings",
            count,
            checkpoint,
            rows,
            files,
            spec,
            device,
            execution.jobs,
            tasks.built.tokens if tasks is not None else 0,
        )
        watch.on_plan(plan)
    read_weights(watch, checkpoint)
    identity |= {
        "model": checkpoint.identity,
        "data": rows.identity,
        "eval_data": [file.identity for file in files],
        "choose_on": choosing.identity if choosing else None,
        "eval_every": source.eval_every,
        "device": device.type,
        "dtype": str(training_dtype(source.dtype, checkpoint, device)).removeprefix("torch."),
    }
    if tasks is not None:
        identity["tasks"] = tasks.identity()
    if source.trust_remote_code:
        identity["trust_remote_code"] = True
    columns = columns_of({"kind": kind, **identity})
    study = StudyFolder.open(out, kind, identity, columns, fresh, grows)
    try:
        try:
            planned = [
                (setting, dataclasses.replace(cell_plan, spec=spec.of_same_rows(cell_plan.spec)))
                for setting, cell_plan in plans(study.spec)
            ]
        except (TypeError, KeyError, ValueError) as error:
            raise RecordError(
                f"{out}: cannot read the settings of its trainings: {describe_error(error)}"
            ) from error
        done = [cell.setting for cell in study.cells]
        for setting, cell_plan in planned:
            if cell_plan.unavailable and setting not in done:
                raise DeltaLensError(f"{out}: {cell_plan.unavailable}")
            if cell_plan.checkpoint is None and cell_plan.start is None:
                check_head(cell_plan.spec, checkpoint.config)
        worker = CellMaker(
            out=out,
            source=source,
            files=files,
            choosing=choosing if learning_rates else None,
            plans={repr(setting): cell_plan for setting, cell_plan in planned},
            keep=keep_checkpoints,
        )
        study.facts |= {
            "model": str(checkpoint.path),
            "units": {"training_loss": planned[0][1].spec.loss_unit},
            **({"better": tasks.built.better()} if tasks is not None else {}),
            **(facts or {}),
        }
        study.write_manifest()
        for name in (CHECKPOINTS, RESULTS):
            if (out / name).is_symlink():
                raise RecordError(f"{out / name}: is a symbolic link; remove it")
        if not study.cells:
            # Left by another study, which was interrupted before this one replaced it.
            shutil.rmtree(out / RESULTS, ignore_errors=True)
        cells = [setting for setting, _ in planned]
        run_cells(
            study,
            cells,
            worker,
            worker,
            watch,
            point_of=_of_setting(point_of, planned),
            requires=_of_setting(requires, planned),
            execution=execution,
            tasks=tasks,
        )
        shutil.rmtree(out / RESULTS, ignore_errors=True)
    finally:
        for unfinished in out.glob(f"{CELL}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            gather_notes(study)
        finally:
            study.close()
    return load_study(out)


def _axes(kind: str, extra_spec: Mapping[str, tuple[Any, Union | None]]) -> dict[str, Union]:
    return {
        "methods": axes.names(known_methods(kind)),
        **{name: union for name, (_, union) in extra_spec.items() if union is not None},
        "seeds": axes.largest,
        "settings": axes.settings(known_methods(kind)),
    }


def _of_setting(
    point_of: PointOf, planned: Sequence[tuple[Setting, Plan]]
) -> Callable[[Setting], str | None]:
    plans = {repr(setting): plan for setting, plan in planned}

    def of_setting(setting: Setting) -> str | None:
        plan = plans.get(repr(setting))
        return None if plan is None else point_of(setting, plan)

    return of_setting
