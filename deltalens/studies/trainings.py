"""Studies whose cells are trainings: each cell's model is made, measured, and gone."""

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
from deltalens.scoring.rows import DataFile, read_files, read_rows
from deltalens.scoring.suite import Metrics, ReadySuite
from deltalens.scoring.texts import Progress
from deltalens.studies import axes
from deltalens.studies.drop import drop
from deltalens.studies.engine import StudyWatch, read_weights, run_cells
from deltalens.studies.executors import Tell
from deltalens.studies.training_notes import gather_notes, note
from deltalens.studies.training_plans import Plan, Plans, TrainingData
from deltalens.training.following import TrainingWatch
from deltalens.training.run import train, training_dtype, training_suite
from deltalens.training.spec import TrainingSpec

__all__ = ["CellMaker", "run_trainings"]

_KEPT, _CELL, _GROUND = "checkpoints", ".cell", ".ground"


def run_trainings(
    kind: str,
    plans: Plans,
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    settings: Mapping[str, Mapping[str, Any]],
    seeds: int,
    along: Mapping[str, tuple[Any, Union | None]],
    same: Callable[[Setting], str | None] = lambda setting: None,
    after: Callable[[Setting], str | None] = lambda setting: None,
    keep_checkpoints: bool,
    jobs: int,
    fresh: bool,
    watch: StudyWatch | None,
    facts: Mapping[str, Any] | None = None,
) -> StudyRecord:
    """Make and measure every cell's model.

    Args:
        kind: of the study.
        plans: the cells of what was asked.
        source: the model, and the data.
        out: the study's folder.
        spec: what all trainings have in common.
        settings: each method's own, in the order of the table.
        seeds: how many trainings at each point.
        along: what else the study was asked, as JSON values; and how that grows, if it does.
        same, after, jobs: as `run_cells` takes them.
        keep_checkpoints: keep every trained model in the study's `checkpoints`.
        fresh: discard what the folder holds of another study.
        watch: told of stages, progress and finished cells.
        facts: what else the records say.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    watch, out, known = watch or StudyWatch(), Path(out), STUDIES[kind]
    identity = {
        **spec.shared(),
        "methods": [*settings],
        **{name: value for name, (value, _) in along.items()},
        "seeds": seeds,
        "settings": settings,
    }
    plans(identity)
    rows = read_rows(source.data, source.limit, source.fields)
    files = read_files(source.eval_data, None, source.fields)
    checkpoint = open_checkpoint(source.model)
    where = pick_device(source.device)
    check_study_folder(out, [checkpoint.path])
    read_weights(watch, checkpoint)
    choosing = read_rows(source.choose_on, None, source.fields) if source.choose_on else None
    identity |= {
        "model": checkpoint.identity,
        "data": rows.identity,
        "eval_data": [file.identity for file in files],
        "choose_on": choosing.identity if choosing else None,
        "eval_every": source.eval_every,
        "device": where.type,
        "dtype": str(training_dtype(source.dtype, checkpoint, where)).removeprefix("torch."),
    }
    grows: dict[str, Union] = {
        "methods": axes.named(known.methods),
        **{name: union for name, (_, union) in along.items() if union is not None},
        "seeds": axes.largest,
        "settings": axes.settings(known.methods),
    }
    study = StudyFolder.open(out, kind, identity, known.columns, fresh, grows)
    try:
        try:
            planned = plans(study.spec)
        except (TypeError, KeyError, ValueError) as error:
            raise RecordError(
                f"{out}: what its trainings were asked cannot be read: {describe_error(error)}"
            ) from error
        done = [cell.setting for cell in study.cells]
        for setting, plan in planned:
            if plan.lacks and setting not in done:
                raise DeltaLensError(f"{out}: {plan.lacks}")
        making = CellMaker(
            out=out,
            source=source,
            files=files,
            plans={repr(setting): plan for setting, plan in planned},
            keep=keep_checkpoints,
        )
        study.facts |= {
            "model": str(checkpoint.path),
            "units": {"training_loss": planned[0][1].spec.loss_unit},
            **(facts or {}),
        }
        study.write_manifest()
        for name in (_KEPT, _GROUND):
            if (out / name).is_symlink():
                raise RecordError(f"{out / name}: a link; remove it")
        if not study.cells:
            # What another study, stopped before this one began afresh, would have built on.
            shutil.rmtree(out / _GROUND, ignore_errors=True)
        cells = [setting for setting, _ in planned]
        run_cells(study, cells, making, making, watch, same=same, after=after, jobs=jobs)
        shutil.rmtree(out / _GROUND, ignore_errors=True)
    finally:
        for left in out.glob(f"{_CELL}*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            gather_notes(study)
        finally:
            study.close()
    return load_study(out)


@dataclass(frozen=True, kw_only=True)
class CellMaker:
    """Makes and measures one cell; in any process. It is its own recipe: nothing has to be
    prepared."""

    out: Path
    source: TrainingData
    files: Sequence[DataFile]
    plans: Mapping[str, Plan]
    keep: bool
    stays = None
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

    def measure(self, setting: Setting, tell: Tell) -> Metrics:
        """See `Worker`."""
        plan = self.plans[repr(setting)]
        made = self.out / f"{_CELL}-{os.getpid()}"
        if plan.still is not None:
            return self.evaluate(plan.still, check=plan.still == self.source.model)
        if plan.drop is not None:
            found = self._drop(plan, made, tell)
        else:
            start = self._ground(plan, made, tell) if plan.continued else plan.start
            found = self._train(plan, start or self.source.model, made, tell)
        if self.keep:
            named = [f"{x:g}" if isinstance(x, float) else str(x) for x in setting.values()]
            _copy(made, self.out / _KEPT / "-".join(named))
        shutil.rmtree(made, ignore_errors=True)
        return found

    def _train(self, plan: Plan, start: str | Path, made: Path, tell: Tell) -> Metrics:
        shutil.rmtree(made, ignore_errors=True)
        source = self.source
        trained = train(
            start,
            source.data,
            made,
            plan.spec,
            fields=source.fields,
            limit=plan.rows or source.limit,
            eval_data=source.eval_data,
            eval_every=source.eval_every,
            choose_on=source.choose_on,
            checkpoint_every=1 << 30,
            device=source.device,
            dtype=source.dtype,
            trust_remote_code=None,
            watch=TrainingWatch(at=tell),
        )
        if not trained.finished:
            raise KeyboardInterrupt
        if trained.notes:
            note(self.out, [f"{plan.spec.method}: {note}" for note in trained.notes])
        needed = {one.training for one in self.plans.values() if one.builds}
        if not plan.builds and plan.training in needed:
            _copy(made, self.out / _GROUND / plan.training, seals=True)
        found = {**trained.metrics, **_on_the_way(made, trained.steps)}
        if trained.steps:
            found["training_loss"] = Measurement(trained.loss)
        return found

    def _drop(self, plan: Plan, made: Path, tell: Tell) -> Metrics:
        tuned = self._ground(plan, made, tell)
        shutil.rmtree(made, ignore_errors=True)
        assert plan.drop is not None
        drop(tuned, self.source.model, made, strategy="trivial", rate=plan.drop, scope=plan.scope)
        return self.evaluate(made)

    def _ground(self, plan: Plan, made: Path, tell: Tell) -> Path:
        """The result of the training that a plan builds on: kept by its own cell, or trained."""
        ground = self.out / _GROUND / plan.training
        if os.path.lexists(ground):
            try:
                check_seal(ground)
            except RecordError as error:
                note(self.out, [f"{error}; trained again"])
                remove(ground)
        if not ground.exists():
            alone = dataclasses.replace(plan, drop=None, continued=False)
            self._train(alone, plan.start or self.source.model, made, tell)
        return ground

    def evaluate(self, folder: str | Path, check: bool = False) -> Metrics:
        """A checkpoint as it is, in the dtype in which it would be trained, its preferences against
        the study's model; refused, if wanted, where it computes no numbers."""
        spec = next(iter(self.plans.values())).spec
        loaded = reference = self._load(folder)
        if spec.objective == "dpo" and Path(folder) != Path(self.source.model):
            reference = self._load(self.source.model)
        suite = ReadySuite(training_suite(self.files, spec), reference, folder if check else None)
        return suite.measure(loaded.model)

    def _load(self, folder: str | Path) -> LoadedModel:
        checkpoint, device = open_checkpoint(folder), pick_device(self.source.device)
        return load_model(checkpoint, training_dtype(self.source.dtype, checkpoint, device), device)


def _on_the_way(made: Path, steps: int) -> Metrics:
    """What a training measured before its end."""
    return {
        f"{name}@{line['step']}": Measurement(*measured)
        for line in TrainingMetrics(made).lines()
        if "evaluated" in line and line["step"] < steps
        for name, measured in line["evaluated"].items()
    }


def _copy(source: Path, target: Path, seals: bool = False) -> None:
    """Whole or not at all; where another process was first, its copy stays.

    Args:
        source, target: folders.
        seals: it is used later on, and checked then.
    """
    if target.is_dir():
        return
    try:
        with new_folder(target) as made:
            shutil.copytree(source, made, dirs_exist_ok=True)
            if seals:
                write_seal(made, {}, target.name)
    except DeltaLensError:
        if not target.is_dir():
            raise
