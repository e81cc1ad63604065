"""Studies whose cells are trainings: the model of each cell is made, measured, and deleted."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError, RecordError, describe_error
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.folders import new_folder, remove
from deltalens.io.records import (
    Measurement,
    Setting,
    StudyFolder,
    StudyRecord,
    Union,
    check_study_folder,
    load_study,
)
from deltalens.io.records.metrics import Metrics as TrainingMetrics
from deltalens.io.records.seal import check_seal, write_seal
from deltalens.scoring.loading import LoadedModel, load_model, pick_device
from deltalens.scoring.planning import plan_training
from deltalens.scoring.rows import DataFile, read_files, read_rows
from deltalens.scoring.suite import Metrics, ReadySuite
from deltalens.scoring.texts import Progress
from deltalens.studies import axes
from deltalens.studies.drop import drop
from deltalens.studies.engine import StudyWatch, count_points, read_weights, run_cells
from deltalens.studies.executors import Report
from deltalens.studies.training_notes import gather_notes, note
from deltalens.studies.training_plans import Plan, Plans, TrainingData, known_methods
from deltalens.training.following import TrainingWatch
from deltalens.training.prepare import training_dtype, training_suite
from deltalens.training.run import train
from deltalens.training.spec import TrainingSpec

__all__ = ["CellMaker", "run_trainings"]

_CHECKPOINTS, _RESULTS, _CELL = "checkpoints", ".ground", ".cell"
"""Folders of a study: the trained models that the caller keeps; results of trainings that other
cells are made from; the model of one running cell."""


def run_trainings(
    kind: str,
    plans: Plans,
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    settings: Mapping[str, Mapping[str, Any]],
    seeds: int,
    extra_spec: Mapping[str, tuple[Any, Union | None]],
    point_of: Callable[[Setting], str | None] = lambda setting: None,
    requires: Callable[[Setting], str | None] = lambda setting: None,
    keep_checkpoints: bool,
    jobs: int,
    fresh: bool,
    watch: StudyWatch | None,
    facts: Mapping[str, Any] | None = None,
) -> StudyRecord:
    """Make and measure the model of every cell.

    Args:
        kind: of the study.
        plans: from the study's specification to its cells.
        source: the model, and the data for training and evaluation.
        out: the study's folder.
        spec: the settings that all trainings share.
        settings: each method's own settings, in the order of the table.
        seeds: number of trainings at each point.
        extra_spec: further entries of the study's specification: name -> (JSON value, how values
            are merged when the study grows; None: it cannot grow).
        point_of, requires, jobs: as `run_cells` takes them.
        keep_checkpoints: keep every trained model in the study's folder `checkpoints`.
        fresh: discard any other study in the folder.
        watch: told of stages, progress and finished cells.
        facts: further facts for the records.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    identity = {
        **spec.shared(),
        "methods": [*settings],
        **{name: value for name, (value, _) in extra_spec.items()},
        "seeds": seeds,
        "settings": settings,
    }
    count = count_points((setting for setting, _ in plans(identity)), point_of)
    rows = read_rows(source.data, source.limit, source.fields)
    files = read_files(source.eval_data, None, source.fields)
    checkpoint = open_checkpoint(source.model)
    device = pick_device(source.device)
    check_study_folder(out, [checkpoint.path])
    if watch.on_plan is not None:
        plan = plan_training("trainings", count, checkpoint, rows, files, spec, device, jobs)
        watch.on_plan(plan)
    read_weights(watch, checkpoint)
    choosing = read_rows(source.choose_on, None, source.fields) if source.choose_on else None
    identity |= {
        "model": checkpoint.identity,
        "data": rows.identity,
        "eval_data": [file.identity for file in files],
        "choose_on": choosing.identity if choosing else None,
        "eval_every": source.eval_every,
        "device": device.type,
        "dtype": str(training_dtype(source.dtype, checkpoint, device)).removeprefix("torch."),
    }
    if source.trust_remote_code:
        identity["trust_remote_code"] = True
    grows: dict[str, Union] = {
        "methods": axes.names(known_methods(kind)),
        **{name: union for name, (_, union) in extra_spec.items() if union is not None},
        "seeds": axes.largest,
        "settings": axes.settings(known_methods(kind)),
    }
    study = StudyFolder.open(out, kind, identity, STUDIES[kind].columns, fresh, grows)
    try:
        try:
            planned = plans(study.spec)
        except (TypeError, KeyError, ValueError) as error:
            raise RecordError(
                f"{out}: cannot read the settings of its trainings: {describe_error(error)}"
            ) from error
        done = [cell.setting for cell in study.cells]
        for setting, cell_plan in planned:
            if cell_plan.unavailable and setting not in done:
                raise DeltaLensError(f"{out}: {cell_plan.unavailable}")
        worker = CellMaker(
            out=out,
            source=source,
            files=files,
            plans={repr(setting): cell_plan for setting, cell_plan in planned},
            keep=keep_checkpoints,
        )
        study.facts |= {
            "model": str(checkpoint.path),
            "units": {"training_loss": planned[0][1].spec.loss_unit},
            **(facts or {}),
        }
        study.write_manifest()
        for name in (_CHECKPOINTS, _RESULTS):
            if (out / name).is_symlink():
                raise RecordError(f"{out / name}: is a symbolic link; remove it")
        if not study.cells:
            # Left by another study, which was interrupted before this one replaced it.
            shutil.rmtree(out / _RESULTS, ignore_errors=True)
        cells = [setting for setting, _ in planned]
        run_cells(
            study, cells, worker, worker, watch, point_of=point_of, requires=requires, jobs=jobs
        )
        shutil.rmtree(out / _RESULTS, ignore_errors=True)
    finally:
        for unfinished in out.glob(f"{_CELL}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            gather_notes(study)
        finally:
            study.close()
    return load_study(out)


@dataclass(frozen=True, kw_only=True)
class CellMaker:
    """Makes and measures the model of one cell, in any process. It needs no preparation, and so is
    its own recipe."""

    out: Path
    """The study's folder."""
    source: TrainingData
    files: Sequence[DataFile]
    """The rows to evaluate on."""
    plans: Mapping[str, Plan]
    """`repr` of a cell's setting -> how its model is made."""
    keep: bool
    """Keep every trained model."""
    local_reason = None
    shares_threads = True

    @property
    def one_device(self) -> bool:
        """See `Recipe`."""
        return ":" in self.source.device

    def prepare(self, watch: Progress) -> CellMaker:
        """See `Recipe`."""
        return self

    def close(self) -> None:
        """See `Worker`."""

    def measure(self, setting: Setting, report: Report) -> Metrics:
        """See `Worker`."""
        plan = self.plans[repr(setting)]
        folder = self.out / f"{_CELL}-{os.getpid()}"
        if plan.checkpoint is not None:
            return self.evaluate(plan.checkpoint, check=plan.checkpoint == self.source.model)
        if plan.drop is not None:
            metrics = self._drop(plan, folder, report)
        else:
            start = self._required(plan, folder, report) if plan.continued else plan.start
            metrics = self._train(plan, start or self.source.model, folder, report)
        if self.keep:
            parts = [f"{x:g}" if isinstance(x, float) else str(x) for x in setting.values()]
            _copy(folder, self.out / _CHECKPOINTS / "-".join(parts))
        shutil.rmtree(folder, ignore_errors=True)
        return metrics

    def _train(self, plan: Plan, start: str | Path, folder: Path, report: Report) -> Metrics:
        """Train into a folder; keep a copy of the result if another cell is made from it."""
        shutil.rmtree(folder, ignore_errors=True)
        source = self.source
        trained = train(
            start,
            source.data,
            folder,
            plan.spec,
            fields=source.fields,
            limit=plan.rows or source.limit,
            eval_data=source.eval_data,
            eval_every=source.eval_every,
            choose_on=source.choose_on,
            checkpoint_every=1 << 30,
            device=source.device,
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            watch=TrainingWatch(at=report),
        )
        if not trained.finished:
            raise KeyboardInterrupt
        if trained.notes:
            note(self.out, [f"{plan.spec.method.name}: {note}" for note in trained.notes])
        required = {other.training for other in self.plans.values() if other.builds}
        if not plan.builds and plan.training in required:
            _copy(folder, self.out / _RESULTS / plan.training, seal=True)
        metrics = {**trained.metrics, **_metrics_by_step(folder, trained.steps)}
        if trained.steps:
            metrics["training_loss"] = Measurement(trained.loss)
        return metrics

    def _drop(self, plan: Plan, folder: Path, report: Report) -> Metrics:
        tuned = self._required(plan, folder, report)
        shutil.rmtree(folder, ignore_errors=True)
        assert plan.drop is not None
        drop(tuned, self.source.model, folder, strategy="trivial", rate=plan.drop, scope=plan.scope)
        return self.evaluate(folder)

    def _required(self, plan: Plan, folder: Path, report: Report) -> Path:
        """The result of the training that a plan requires: a copy that its own cell kept, or else
        trained now."""
        result = self.out / _RESULTS / plan.training
        if os.path.lexists(result):
            try:
                check_seal(result)
            except RecordError as error:
                note(self.out, [f"{error}; trained again"])
                remove(result)
        if not result.exists():
            training = dataclasses.replace(plan, drop=None, continued=False)
            self._train(training, plan.start or self.source.model, folder, report)
        return result

    def evaluate(self, folder: str | Path, check: bool = False) -> Metrics:
        """Measure a checkpoint as it is, in the dtype in which it would be trained.

        Args:
            folder: the checkpoint. Preferences are measured relative to the study's model.
            check: refuse a model whose outputs are not finite.

        Returns:
            Its metrics.

        Raises:
            DeltaLensError: the model cannot be loaded or measured.
        """
        spec = next(iter(self.plans.values())).spec
        loaded = reference = self._load(folder)
        if spec.objective == "dpo" and Path(folder) != Path(self.source.model):
            reference = self._load(self.source.model)
        suite = ReadySuite(training_suite(self.files, spec), reference, folder if check else None)
        return suite.measure(loaded.model)

    def _load(self, folder: str | Path) -> LoadedModel:
        checkpoint, device = open_checkpoint(folder), pick_device(self.source.device)
        kind = training_dtype(self.source.dtype, checkpoint, device)
        return load_model(checkpoint, kind, device, self.source.trust_remote_code)


def _metrics_by_step(folder: Path, steps: int) -> Metrics:
    """The evaluations of a training before its last step: METRIC@STEP -> measurement."""
    return {
        f"{name}@{line['step']}": Measurement(*measured)
        for line in TrainingMetrics(folder).lines()
        if "evaluated" in line and line["step"] < steps
        for name, measured in line["evaluated"].items()
    }


def _copy(source: Path, target: Path, seal: bool = False) -> None:
    """Copy a folder, completely or not at all. If another process has already written the target,
    keep that.

    Args:
        source, target: folders.
        seal: write a checksum, for `check_seal` when the copy is used.
    """
    if target.is_dir():
        return
    try:
        with new_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
            if seal:
                write_seal(temporary, {}, target.name)
    except DeltaLensError:
        if not target.is_dir():
            raise
