"""Making and measuring the model of one cell of a study of trainings."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.folders import new_folder, remove
from deltalens.io.records import Measurement, Setting, as_choosing, deciding_metric
from deltalens.io.records.metrics import Metrics as TrainingMetrics
from deltalens.io.records.seal import check_seal, write_seal
from deltalens.scoring.loading import LoadedModel, load_model, pick_device
from deltalens.scoring.ready_suite import ReadySuite
from deltalens.scoring.rows import DataFile
from deltalens.scoring.suite import Metrics
from deltalens.scoring.tasks.scoring import TaskScoring
from deltalens.scoring.texts import Progress
from deltalens.studies.drop import drop
from deltalens.studies.executors import Report
from deltalens.studies.training_notes import note
from deltalens.studies.training_plans import Plan, TrainingData
from deltalens.training.following import TrainingWatch
from deltalens.training.prepare import training_dtype, training_suite
from deltalens.training.run import train
from deltalens.training.settling import head_for
from deltalens.training.spec import TrainingSpec

__all__ = ["CELL", "CHECKPOINTS", "RESULTS", "CellMaker"]

CHECKPOINTS, RESULTS, CELL = "checkpoints", ".ground", ".cell"
"""Folders of a study: the trained models that the caller keeps; results of trainings that other
cells are made from; the model of one running cell."""


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
    choosing: DataFile | None = None
    """The rows that choose a learning rate, in a study with a grid of them."""
    keep: bool
    """Keep every trained model."""
    local_reason = None
    shares_threads = True

    @property
    def device(self) -> torch.device:
        """See `Recipe`."""
        return pick_device(self.source.device)

    @property
    def paths(self) -> list[Path]:
        """See `Recipe`."""
        source, plans = self.source, self.plans.values()
        models = {
            source.model,
            *(model for plan in plans for model in (plan.start, plan.checkpoint)),
        }
        rows = [source.data, *source.eval_data, source.choose_on]
        return [
            *(file for model in models if model for file in open_checkpoint(model).files),
            *(Path(file) for file in rows if file),
            *(source.tasks.paths if source.tasks is not None else ()),
            self.out,
        ]

    def prepare(self, watch: Progress) -> CellMaker:
        """See `Recipe`."""
        return self

    def close(self) -> None:
        """See `Worker`."""

    def measure(self, setting: Setting, report: Report) -> Metrics:
        """See `Worker`."""
        plan = self.plans[repr(setting)]
        folder = self.out / f"{CELL}-{platform.node()}-{os.getpid()}"
        if plan.checkpoint is not None:
            check = plan.checkpoint == self.source.model
            return self.evaluate(plan.checkpoint, report, check=check)
        if plan.drop is not None:
            metrics = self._drop(plan, folder, report)
            if self.choosing is not None:
                # The rows that chose a checkpoint of the training know nothing of the drop.
                chosen = self.evaluate(folder, report, files=[self.choosing])
                metrics = {**metrics, **as_choosing(chosen)}
        else:
            start = self._required(plan, folder, report) if plan.continued else plan.start
            metrics, steps = self._train(plan, start or self.source.model, folder, report)
            if self.source.tasks is not None:
                scores = self._on_tasks(
                    self._load(folder, plan.spec),
                    lambda done, total: report(steps + done, steps + total),
                )
                metrics = {**metrics, **scores}
        if self.keep:
            parts = [f"{x:g}" if isinstance(x, float) else str(x) for x in setting.values()]
            _copy(folder, self.out / CHECKPOINTS / _file_name("-".join(parts)))
        shutil.rmtree(folder, ignore_errors=True)
        return metrics

    def _train(
        self, plan: Plan, start: str | Path, folder: Path, report: Report
    ) -> tuple[Metrics, int]:
        """Train into a folder; keep a copy of the result if another cell is made from it. What was
        measured meanwhile, and the number of steps."""
        shutil.rmtree(folder, ignore_errors=True)
        source = self.source
        requests = source.tasks.built.responses if source.tasks is not None else 0
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
            watch=TrainingWatch(at=lambda done, total: report(done, total + requests)),
        )
        if not trained.finished:
            raise KeyboardInterrupt
        if trained.notes:
            note(self.out, [f"{plan.spec.method.name}: {note}" for note in trained.notes])
        required = {other.training for other in self.plans.values() if other.builds}
        if not plan.builds and plan.training in required:
            _copy(folder, self.out / RESULTS / plan.training, seal=True)
        metrics = {**trained.metrics, **_metrics_by_step(folder, trained.steps)}
        if trained.steps:
            metrics["training_loss"] = Measurement(trained.loss)
        if self.choosing is not None:
            metrics |= as_choosing(_measured_choosing(folder))
        return metrics, trained.steps

    def _drop(self, plan: Plan, folder: Path, report: Report) -> Metrics:
        tuned = self._required(plan, folder, report)
        shutil.rmtree(folder, ignore_errors=True)
        assert plan.drop is not None
        drop(tuned, self.source.model, folder, strategy="trivial", rate=plan.drop, scope=plan.scope)
        return self.evaluate(folder, report)

    def _required(self, plan: Plan, folder: Path, report: Report) -> Path:
        """The result of the training that a plan requires: a copy that its own cell kept, or else
        trained now."""
        result = self.out / RESULTS / plan.training
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

    def evaluate(
        self,
        folder: str | Path,
        report: Report,
        *,
        check: bool = False,
        files: Sequence[DataFile] | None = None,
    ) -> Metrics:
        """Measure a checkpoint as it is, in the dtype in which it would be trained.

        Args:
            folder: the checkpoint. Preferences are measured relative to the study's model.
            report: told of the requests of standard tasks that are done.
            check: refuse a model whose outputs are not finite.
            files: the rows to measure on; None: the study's.

        Returns:
            Its metrics.

        Raises:
            DeltaLensError: the model cannot be loaded or measured.
        """
        spec = next(iter(self.plans.values())).spec
        loaded = reference = self._load(folder, spec, noted=files is None)
        if spec.objective == "dpo" and Path(folder) != Path(self.source.model):
            reference = self._load(self.source.model, spec)
        rows = self.files if files is None else files
        suite = ReadySuite(training_suite(rows, spec), reference, folder if check else None)
        metrics = suite.measure(loaded.model)
        return metrics | self._on_tasks(loaded, report) if files is None else metrics

    def _on_tasks(self, loaded: LoadedModel, report: Report) -> Metrics:
        """Measure a model on the standard tasks, if the study has any."""
        if self.source.tasks is None:
            return {}
        scoring = TaskScoring(self.source.tasks, loaded)
        if scoring.notes:
            note(self.out, scoring.notes)
        return scoring.measure(loaded.model, report)

    def _load(self, folder: str | Path, spec: TrainingSpec, *, noted: bool = False) -> LoadedModel:
        checkpoint, device = open_checkpoint(folder), pick_device(self.source.device)
        kind = training_dtype(self.source.dtype, checkpoint, device)
        head = head_for(spec, checkpoint.config)
        loaded = load_model(checkpoint, kind, device, self.source.trust_remote_code, head)
        if noted and head is not None:
            fresh = ", ".join(loaded.fresh)
            untrained = f"a new head, drawn from seed {head.seed} and not trained ({fresh})"
            note(self.out, [f"{checkpoint.path}: measured as it is, with {untrained}"])
        return loaded


def _metrics_by_step(folder: Path, steps: int) -> Metrics:
    """The evaluations of a training before its last step: METRIC@STEP -> measurement."""
    return {
        f"{name}@{line['step']}": Measurement(*measured)
        for line in TrainingMetrics(folder).lines()
        if "evaluated" in line and line["step"] < steps
        for name, measured in line["evaluated"].items()
    }


def _measured_choosing(folder: Path) -> Metrics:
    """What the rows that choose said of the checkpoint that was kept, the first with the least loss
    (`Chooser`); {} if nothing was trained."""
    found = [line["choosing"] for line in TrainingMetrics(folder).lines() if "choosing" in line]
    if not found:
        return {}
    losses = [float(measured[deciding_metric(measured)][0]) for measured in found]
    kept = found[min(range(len(found)), key=lambda at: _nan_last(losses[at]))]
    return {name: Measurement(*measured) for name, measured in kept.items()}


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _file_name(text: str) -> str:
    """A text as the name of a folder: a variant's label can contain a pattern, with slashes."""
    plain = re.sub(r"[^\w.=,+-]", "_", text.replace(":", "-"))[:150]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


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
