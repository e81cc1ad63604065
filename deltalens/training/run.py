"""Training a model by a method: from the loaded model to the written one, in one process."""

from __future__ import annotations

import importlib.metadata
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltalens.errors import DeltaLensError, errors_from
from deltalens.integrations.transformers import GradientProbeCallback, SubscriberCallback
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.fingerprint import take_fingerprints
from deltalens.io.records import ADAPTER, MASKS, Measurement, TrainingFolder
from deltalens.methods.new_head import mark_new_head, train_new_head
from deltalens.scoring.loading import LoadedModel, load_model, pick_device
from deltalens.scoring.planning import plan_training
from deltalens.scoring.positions import longest_input
from deltalens.scoring.ready_suite import ReadySuite, evaluating
from deltalens.scoring.rows import DataFile, read_files, read_rows
from deltalens.training.calibration import CalibrationBatches
from deltalens.training.choosing import Chooser, TrainedParameters
from deltalens.training.costs import peak_mb, sparse_costs
from deltalens.training.following import Following, NothingLeft, TrainingWatch
from deltalens.training.keeping import PlainStates, write_model
from deltalens.training.methods import Ready, trainable
from deltalens.training.objectives import objective_of
from deltalens.training.prepare import training_dtype, training_suite
from deltalens.training.settling import check_head, head_for, settled
from deltalens.training.spec import TrainingSpec, config_class
from deltalens.training.trainer import make_savable, make_trainer

__all__ = ["Trained", "TrainingWatch", "train"]


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    path: Path
    steps: int
    seconds: float
    """Wall time of the steps that this call took."""
    loss: float
    """Mean training loss over the last tenth of the logged steps, in `loss_unit`."""
    finished: bool
    """False if it was interrupted; its last checkpoint is kept."""
    metrics: Mapping[str, Measurement]
    """On the evaluation data, at the end."""
    notes: tuple[str, ...] = ()
    run: Path | None = None
    """The probe's run folder."""
    masks: Path | None = None
    """Which weights were removed."""
    adapter: Path | None = None
    """The folder of the adapter, before it was merged."""
    loss_unit: str = "nats per target token"
    """What the loss is, and its unit."""
    costs: tuple[str, ...] = ()
    """What was spent beside the steps, in sentences."""


def train(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    spec: TrainingSpec,
    *,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    eval_data: Sequence[str | Path] = (),
    eval_every: int | None = None,
    choose_on: str | Path | None = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: bool = False,
    probe: Mapping[str, Any] | None = None,
    resume: bool = False,
    report_to: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    watch: TrainingWatch | None = None,
) -> Trained:
    """Train a checkpoint on rows by a method, and write the result as a checkpoint.

    AdamW; linear warm-up, then cosine. An interrupted training (Ctrl-C) writes a checkpoint first;
    with `resume` the same call goes on bit for bit where the last checkpoint was written.

    Args:
        model: a checkpoint folder.
        data: a file of rows (`read_rows`): `text`, `prompt` and `completion`, `messages`;
            `prompt`, `chosen` and `rejected` for DPO; or sentences and `label`, for classification
            or regression.
        out: the folder to write; must be new.
        spec: the method, its settings, and those of every training.
        fields: names of fields in the data files, evaluation rows included: {"prompt": "question"}.
        limit: train on the first rows only.
        eval_data: files measured at the end, and every `eval_every` steps.
        eval_every: steps between evaluations.
        choose_on: rows that decide, every `eval_every` steps (a tenth of the training if not
            given), which checkpoint is kept as the result: the one with the least loss.
        checkpoint_every: steps between checkpoints; a tenth of the training if not given.
        keep_checkpoints: also write each of them as an ordinary model, `checkpoint-STEP` in `out`:
            masks, sparse values and adapters merged.
        probe: log the gradients with these options of `GradientProbe`.
        resume: go on with the training that `out` holds.
        report_to: trackers of transformers that are told of the training.
        device, dtype: `auto`: CUDA if there is one; the checkpoint's dtype there, fp32 on a CPU.
        trust_remote_code: run model code that the checkpoint brings.
        watch: told of stages and steps.

    Returns:
        The result.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch = watch or TrainingWatch()
    if spec.method.facts.as_trained or spec.method.facts.as_it_is:
        raise DeltaLensError(
            f"method {spec.method.name!r}: only studies know it; choose one of "
            f"{', '.join(trainable())}"
        )
    config_class(spec.objective)  # Without trl, refuse before reading anything.
    rows = read_rows(data, limit, fields)
    others = read_files(eval_data, None, fields)
    choosing = read_rows(choose_on, None, fields) if choose_on is not None else None
    checkpoint = open_checkpoint(model)
    held_out = (*others, choosing) if choosing is not None else others
    spec = settled(spec, checkpoint.config, rows, held_out)
    check_head(spec, checkpoint.config)
    head = head_for(spec, checkpoint.config)
    where = pick_device(device)
    kind = training_dtype(dtype, checkpoint, where)
    if watch.on_plan is not None:
        watch.on_plan(plan_training("trainings", 1, checkpoint, rows, others, spec, where, 1))
    take_fingerprints([checkpoint], watch.stage, watch.at)
    identity = {
        **spec.identity(),
        "model": checkpoint.identity,
        "data": rows.identity,
        "eval_data": [file.identity for file in others],
        "eval_every": eval_every,
        "choose_on": choosing.identity if choosing else None,
        "device": where.type,
        "dtype": str(kind).removeprefix("torch."),
        "probe": dict(probe) if probe is not None else None,
        "trust_remote_code": bool(trust_remote_code),
    }
    folder = TrainingFolder(Path(out), identity, [checkpoint.path], resume)
    try:
        watch.stage("loading the model", None)
        loaded = load_model(checkpoint, kind, where, trust_remote_code, head)
        if head is not None:
            mark_new_head(loaded.model, loaded.fresh)
        training = TrainingSession(spec, folder, checkpoint, loaded, watch, eval_every)
        training.prepare(rows, others, choosing)
        return training.run(checkpoint_every, probe, report_to, keep_checkpoints)
    except Exception:
        if not folder.resumed and not folder.taken:
            folder.abandon()
        raise
    finally:
        folder.close()


class TrainingSession:
    """A training in one process: from its beginning or last checkpoint to the end or Ctrl-C."""

    def __init__(
        self,
        spec: TrainingSpec,
        folder: TrainingFolder,
        checkpoint: Checkpoint,
        loaded: LoadedModel,
        watch: TrainingWatch,
        eval_every: int | None,
    ) -> None:
        self.spec, self.folder, self.checkpoint = spec, folder, checkpoint
        self.model: Any = loaded.model
        self.loaded, self.watch, self.eval_every = loaded, watch, eval_every
        self.notes: list[str] = [*folder.notes]
        self.suite: ReadySuite | None = None
        self.chooser: Chooser | None = None
        self.rows: Any = None
        self.objective = objective_of(spec)
        self.objective.check_trainable(self.model, loaded.tokenizer, checkpoint.path)

    def prepare(
        self, rows: DataFile, others: Sequence[DataFile], choosing: DataFile | None
    ) -> None:
        """Tokenize what is trained on and what is measured; make the model ready."""
        tokenizer: Any = self.loaded.tokenizer
        spec = self.spec
        self.watch.stage("tokenizing", None)
        longest = longest_input(self.model)
        if spec.max_length is not None:
            longest = min(spec.max_length, longest or spec.max_length)
        where = self.checkpoint.path
        self.notes += self.objective.ready(self.loaded, where)
        self.rows, left_out = self.objective.rows(rows, self.loaded, longest, where)
        if left_out:
            self.notes.append(f"{left_out:,} of {len(rows.rows):,} rows left out: too long")
        measured = training_suite(others, spec)
        if others:
            self.suite = ReadySuite(measured, self.loaded)
        self.longest = longest
        micro = spec.batch_size * spec.accumulate
        self.steps = spec.steps or max(1, int(spec.epochs * -(-len(self.rows) // micro)))
        self.plain = PlainStates(self.model, spec.method.name)
        torch.manual_seed(spec.seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("always", category=UserWarning)
            self.ready: Ready = spec.method.prepare(self.model, spec.seed, self._calibration())
        self.notes += [str(one.message) for one in told if issubclass(one.category, UserWarning)]
        train_new_head(self.model)
        self.notes += self.ready.notes
        if choosing is not None:
            scoring = measured.scoring(choosing, self.model, tokenizer)
            state = self.ready.state or TrainedParameters(self.model)
            self.chooser = Chooser(scoring, self.model, self.folder.checkpoints, state)
        make_savable(self.model)

    def _calibration(self) -> CalibrationBatches:
        """Batches of the rows, for a method that looks at some before the first step."""
        return CalibrationBatches(
            self.rows,
            self.objective.batch_of(self.loaded),
            self.spec.batch_size,
            self.spec.seed,
        )

    def run(
        self,
        checkpoint_every: int | None,
        probe: Mapping[str, Any] | None,
        report_to: Sequence[str],
        keep_checkpoints: bool = False,
    ) -> Trained:
        """Take the steps that are left, and write the model.

        Args:
            checkpoint_every: steps between checkpoints; a tenth of the training if None.
            probe: options of a `GradientProbe`; None: none is attached.
            report_to: trackers of transformers.
            keep_checkpoints: also write each checkpoint as an ordinary model.

        Returns:
            The result.

        Raises:
            DeltaLensError: the method's model in training has no ordinary state to keep.
        """
        if keep_checkpoints:
            self.plain.check(self.ready)
        if self.folder.resumed and self.chooser is not None:
            self.chooser.go_back_to(self.folder.last)
        keep = self._keep if keep_checkpoints else None
        following = Following(
            self.folder, self.watch, self.evaluate, self.eval_every, self.chooser, keep
        )
        begun, steps, run = time.perf_counter(), 0, None
        if self.ready.trains:
            steps, run = self._train(checkpoint_every, probe, report_to, following)
        seconds = time.perf_counter() - begun
        finished = not following.interrupted
        metrics = self._finish(steps, seconds) if finished else {}
        losses = [line["loss"] for line in self.folder.metrics.lines() if "loss" in line]
        tail = losses[-max(1, len(losses) // 10) :]
        masks, adapter = self.folder.path / MASKS, self.folder.path / ADAPTER
        return Trained(
            self.folder.path,
            steps,
            seconds,
            sum(tail) / len(tail) if tail else float("nan"),
            finished,
            metrics,
            tuple(self.notes),
            run,
            masks if masks.exists() else None,
            adapter if adapter.exists() else None,
            self.spec.loss_unit,
            self._costs(seconds),
        )

    def _costs(self, seconds: float) -> tuple[str, ...]:
        """What was spent beside the steps, by the pace of those that this call took."""
        taken = self.folder.taken
        micro = self.spec.batch_size * self.spec.accumulate
        epoch = seconds / taken * -(-len(self.rows) // micro) if taken else math.nan
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return sparse_costs(self.ready.facts, parameters, epoch, peak_mb(self.loaded.device))

    def _train(
        self,
        checkpoint_every: int | None,
        probe: Mapping[str, Any] | None,
        report_to: Sequence[str],
        following: Following,
    ) -> tuple[int, Path | None]:
        """Take the steps that are left; how many there were in all, and where a probe logged."""
        last, run = self.folder.last, None
        attached: list[SubscriberCallback[Any]] = []
        if last is None or not last.last:
            attached += self.ready.callbacks
            if probe is not None:
                run = self.folder.run_folder(last.step if last else 0)
                attached.append(GradientProbeCallback(run, **self.ready.watched, **probe))
        trainer = make_trainer(
            self.objective,
            self.loaded,
            self.ready.model,
            self.rows,
            source=self.checkpoint.path,
            checkpoints=self.folder.checkpoints,
            longest=self.longest,
            steps=self.steps,
            checkpoint_every=checkpoint_every,
            report_to=report_to,
            callbacks=[*attached, following],
        )
        self.watch.stage("training", None)
        failed = f"{self.checkpoint.path}: the training failed"
        try:
            with (
                following.interruptible(),
                errors_from(self.objective.library, failed),
                self.folder.room("a checkpoint"),
            ):
                trainer.train(resume_from_checkpoint=str(last.path) if last else None)
        except NothingLeft:
            pass
        finally:
            for one in attached:
                one.abandon()
        return int(trainer.state.global_step), run

    def evaluate(self, step: int) -> dict[str, Measurement]:
        """Measure the model as it is, and log that.

        Args:
            step: the optimizer steps taken so far.

        Returns:
            Metric -> measurement.
        """
        if self.suite is None:
            return {}
        with evaluating(self.model):
            found = self.suite.measure(self.model)
        figures = {name: list(measured) for name, measured in found.items()}
        self.folder.metrics.add({"step": step, "evaluated": figures})
        return found

    def _keep(self, step: int) -> None:
        """Write the model after a step as an ordinary one."""
        self.watch.stage("keeping a checkpoint", None)
        with self.folder.kept_checkpoint(step, self.checkpoint.folder) as made:
            write_model(self.model, made, self.checkpoint.config, self.plain.take(self.ready))
        self.watch.stage("training", None)

    def _finish(self, steps: int, seconds: float) -> dict[str, Measurement]:
        """Measure and write what came out."""
        if self.chooser is not None and steps:
            self.folder.facts["chosen_step"] = self.chooser.restore()
        with self.folder.new_model() as made:
            if self.ready.masks is not None:
                masks = self.ready.masks()
                masks.save(made / MASKS)
                self.folder.facts["removed"] = masks.mask_ratio_by_layer()
                self.folder.facts["removed_of_all"] = masks.mask_ratio
            if self.ready.adapter is not None:
                self.ready.adapter(made / ADAPTER)
            self.model = self.ready.plain()
            metrics = self.evaluate(steps)
            if gaps := [name for name, m in metrics.items() if not math.isfinite(m.value)]:
                self.notes.append(
                    f"not finite at the end: {', '.join(gaps)}. The training diverged (try a lower "
                    "learning_rate), or its dtype is too narrow"
                )
            self.watch.stage("writing the model", None)
            write_model(self.model, made, self.checkpoint.config)
            names = ("torch", "transformers", "trl", "accelerate", "datasets")
            self.folder.facts |= {
                **self.ready.facts,
                "steps": steps,
                "seconds": round(seconds, 3),
                "model": str(self.checkpoint.path),
                "notes": self.notes,
                "units": {"loss": self.spec.loss_unit},
                "versions": {name: importlib.metadata.version(name) for name in names},
            }
            self.folder.write_manifest()
            self.folder.finish(made, self.checkpoint.folder)
        return metrics
