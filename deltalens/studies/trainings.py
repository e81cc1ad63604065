"""Studies whose cells are trainings: each cell's model is made, measured, and gone."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import METHODS, options_of
from deltalens.errors import DeltaLensError, RecordError, reason
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
from deltalens.training.asked import TrainingAsked, check_own
from deltalens.training.following import TrainingWatch
from deltalens.training.run import train, training_dtype, training_suite

__all__ = ["Plan", "TrainingData", "cells_own", "check_trainings", "run_trainings"]

_KEPT, _CELL, _GROUND = "checkpoints", ".cell", ".ground"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the model of a cell comes about."""

    asked: TrainingAsked
    """The training."""
    start: str | Path | None = None
    """The checkpoint that it starts from; the study's model if not given."""
    rows: int | None = None
    """Only the first so many rows of the data."""
    drop: str | None = None
    """Instead: this share of the smallest deltas of that training is put back (One-off Drop)."""
    continued: bool = False
    """Instead: the same training once more, from the result of that one."""
    scope: str = "tensor"
    """What is ranked together for that."""
    still: str | Path | None = None
    """Instead: this checkpoint as it is."""
    lacks: str | None = None
    """Why it cannot come about now: a study that grows may have measured it before."""

    @property
    def training(self) -> str:
        """Names the training whose result is dropped or continued, or is the cell's own."""
        return f"{self.asked.method}-seed-{self.asked.seed}"

    @property
    def builds(self) -> bool:
        """Whether it builds on the result of another training."""
        return self.continued or self.drop is not None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a study of trainings starts from, learns and is measured on.

    Raises:
        DeltaLensError: there is nothing to measure on.
    """

    model: str | Path
    data: str | Path
    eval_data: Sequence[str | Path]
    fields: Mapping[str, str] | None = None
    """What the data files call a field, those that are measured among them."""
    limit: int | None = None
    """Rows taken of the data."""
    choose_on: str | Path | None = None
    """Rows that decide which moment of a training comes out (`train`)."""
    eval_every: int | None = None
    """Steps between measurements on the way; their metrics are called `METRIC@STEP`."""
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not self.eval_data:
            raise DeltaLensError("a sweep needs data to measure on: --eval-data")


Plans = Callable[[Mapping[str, Any]], Sequence[tuple[Setting, Plan]]]
"""From what a study was asked, axes and each method's settings among it, to its cells in the order
of the table: each one's setting, and how its model comes about."""


def check_trainings(
    asked: TrainingAsked,
    methods: Sequence[str],
    known: Sequence[str],
    seeds: int,
    swept: Mapping[str, str],
) -> list[str]:
    """The methods of a study in the order of its table, after a look at what they are asked.

    Args:
        asked: the settings of a training.
        methods: that were asked for.
        known: to the study, in the order of its table.
        seeds: how many trainings at each point.
        swept: settings that the study goes through, and what to give it instead.

    Raises:
        DeltaLensError: an unknown method, none, an option that none of them has, or no seed.
    """
    unknown = [method for method in methods if method not in known]
    if unknown or not methods:
        name = unknown[0] if unknown else ""
        raise DeltaLensError(f"method {name!r}: choose from {', '.join(known)}")
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: at least 1")
    if asked.seed:
        raise DeltaLensError(f"seed {asked.seed}: the trainings of a study have seeds from 0 on")
    check_own(methods, asked.given, swept=swept)
    removing = [m for m in methods if "blocks" in (own := options_of(m)) and "threshold" not in own]
    if asked.threshold is not None and removing:
        raise DeltaLensError(
            f"threshold: {', '.join(removing)} would remove a ratio of their own; leave them out"
        )
    return axes.in_order(methods, known)


def cells_own(
    asked: TrainingAsked, methods: Sequence[str], swept: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Each method's own settings, as its trainings use them; but for those that a study goes
    through, which its cells name."""
    found = {}
    for method in methods:
        own = asked.of(method).settings() if METHODS[method].options is not None else {}
        found[method] = {name: value for name, value in own.items() if name not in swept}
    return found


def run_trainings(
    kind: str,
    columns: Sequence[str],
    plans: Plans,
    source: TrainingData,
    out: str | Path,
    identity: Mapping[str, Any],
    grows: Mapping[str, Union],
    *,
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
        kind, columns: of the study, as its records name them.
        plans: the cells of what was asked.
        source: the model, and the data.
        out: the study's folder.
        identity: what decides the numbers, beside the source.
        grows: the axes among it, and how they grow.
        same, after, jobs: as `run_cells` takes them.
        keep_checkpoints: keep every trained model in the study's `checkpoints`.
        fresh: discard what the folder holds of another study.
        watch: told of stages, progress and finished cells.
        facts: what else the records say.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    plans(identity)
    rows = read_rows(source.data, source.limit, source.fields)
    files = read_files(source.eval_data, None, source.fields)
    checkpoint = open_checkpoint(source.model)
    where = pick_device(source.device)
    check_study_folder(out, [checkpoint.path])
    read_weights(watch, checkpoint)
    choosing = read_rows(source.choose_on, None, source.fields) if source.choose_on else None
    asked = {
        **identity,
        "model": checkpoint.identity,
        "data": rows.identity,
        "eval_data": [file.identity for file in files],
        "choose_on": choosing.identity if choosing else None,
        "eval_every": source.eval_every,
        "device": where.type,
        "dtype": str(training_dtype(source.dtype, checkpoint, where)).removeprefix("torch."),
    }
    study = StudyFolder.open(out, kind, asked, columns, fresh, grows)
    try:
        try:
            planned = plans(study.asked)
        except (TypeError, KeyError, ValueError) as error:
            raise RecordError(
                f"{out}: what its trainings were asked cannot be read: {reason(error)}"
            ) from error
        done = [cell.setting for cell in study.cells]
        for setting, plan in planned:
            if plan.lacks and setting not in done:
                raise DeltaLensError(f"{out}: {plan.lacks}")
        making = _Making(
            out=out,
            source=source,
            files=files,
            plans={repr(setting): plan for setting, plan in planned},
            keep=keep_checkpoints,
        )
        study.facts |= {
            "model": str(checkpoint.path),
            "units": {"training_loss": planned[0][1].asked.loss_unit},
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
class _Making:
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

    def prepare(self, watch: Progress) -> _Making:
        """See `Recipe`."""
        return self

    def close(self) -> None:
        """See `Worker`."""

    def measure(self, setting: Setting, tell: Tell) -> Metrics:
        """See `Worker`."""
        plan = self.plans[repr(setting)]
        made = self.out / f"{_CELL}-{os.getpid()}"
        if plan.still is not None:
            return self._evaluate(plan.still, check=plan.still == self.source.model)
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
            plan.asked,
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
            note(self.out, [f"{plan.asked.method}: {note}" for note in trained.notes])
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
        return self._evaluate(made)

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

    def _evaluate(self, folder: str | Path, check: bool = False) -> Metrics:
        """A checkpoint as it is, in the dtype in which it would be trained, its preferences against
        the study's model; refused, if wanted, where it computes no numbers."""
        asked = next(iter(self.plans.values())).asked
        loaded = reference = self._load(folder)
        if asked.objective == "dpo" and Path(folder) != Path(self.source.model):
            reference = self._load(self.source.model)
        suite = ReadySuite(training_suite(self.files, asked), reference, folder if check else None)
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
