"""Training a model by a named method: one sitting, from the loaded model to the written one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltalens.catalog.methods import TRAININGS
from deltalens.errors import DeltaLensError, errors_from
from deltalens.integrations.transformers import GradientProbeCallback, SubscriberCallback
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.fingerprint import take_fingerprints
from deltalens.io.records import MASKS, Measurement, TrainingFolder
from deltalens.scoring.file_scoring import can_generate
from deltalens.scoring.finite import check_model
from deltalens.scoring.loading import LoadedModel, load_model, pick_device, pick_dtype
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile, read_files, read_rows
from deltalens.scoring.suite import ReadySuite, Suite, evaluating
from deltalens.training.choosing import Chooser
from deltalens.training.following import Following, NothingLeft, TrainingWatch
from deltalens.training.methods import Ready, prepare
from deltalens.training.rows import preferences, tokenized
from deltalens.training.spec import TrainingSpec, config_class
from deltalens.training.trainer import make_savable, make_trainer

__all__ = [
    "Trained",
    "TrainingSession",
    "TrainingWatch",
    "check_trainable",
    "train",
    "training_dtype",
    "training_suite",
]


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    path: Path
    steps: int
    seconds: float
    """Wall time of this sitting's steps."""
    loss: float
    """Mean training loss over the last tenth of the logged steps, in `loss_unit`."""
    finished: bool
    """False where it was interrupted; the last checkpoint is there."""
    metrics: Mapping[str, Measurement]
    """On the evaluation data, at the end."""
    notes: tuple[str, ...] = ()
    run: Path | None = None
    """The probe's run folder."""
    masks: Path | None = None
    """Which weights were removed."""
    loss_unit: str = "nats per target token"
    """What the loss is, and its unit."""


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
    probe: Mapping[str, Any] | None = None,
    resume: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool | None = False,
    watch: TrainingWatch | None = None,
) -> Trained:
    """Train a checkpoint on rows by a method, and write the result as a checkpoint.

    AdamW; linear warm-up, then cosine. An interrupted training (Ctrl-C) writes a checkpoint first;
    with `resume` the same call goes on bit for bit where the last checkpoint was written.

    Args:
        model: a checkpoint folder.
        data: a file of rows (`read_rows`): `text`, `prompt` and `completion`, `messages`; or
            `prompt`, `chosen` and `rejected` for DPO.
        out: the folder to write; new.
        spec: the method and its settings.
        fields: what the data files call a field, those that are measured among them: {"prompt":
            "question"}.
        limit: rows taken of the data.
        eval_data: files measured at the end, and every `eval_every` steps.
        eval_every: steps between evaluations.
        choose_on: rows that decide, every `eval_every` steps (a tenth of the training if not
            given), which moment's model comes out: the one with the least loss.
        checkpoint_every: steps between checkpoints; a tenth of the training if not given.
        probe: log the gradients with these options of `GradientProbe`.
        resume: go on with the training that `out` holds.
        device, dtype: `auto`: CUDA if there is one; the checkpoint's dtype there, fp32 on a CPU.
        trust_remote_code: run model code that the checkpoint brings. None: as False, where there is
            no option to say otherwise.
        watch: told of stages and steps.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch = watch or TrainingWatch()
    spec = dataclasses.replace(spec, method=spec.method or "sft")
    if spec.method not in TRAININGS:
        raise DeltaLensError(
            f"method {spec.method!r}: only studies know it; choose one of {', '.join(TRAININGS)}"
        )
    configure = config_class(spec.objective)
    rows = read_rows(data, limit, fields)
    others = read_files(eval_data, None, fields)
    choosing = read_rows(choose_on, None, fields) if choose_on is not None else None
    checkpoint = open_checkpoint(model)
    where = pick_device(device)
    kind = training_dtype(dtype, checkpoint, where)
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
        loaded = load_model(checkpoint, kind, where, trust_remote_code)
        training = TrainingSession(spec, folder, checkpoint, loaded, watch, eval_every)
        training.prepare(rows, others, choosing)
        return training.run(configure, checkpoint_every, probe)
    except Exception:
        if not folder.resumed and not folder.taken:
            folder.abandon()
        raise
    finally:
        folder.close()


def training_dtype(dtype: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """In which dtype a model is trained: `auto` is fp32 on a CPU, else the checkpoint's."""
    if dtype == "auto" and device.type == "cpu":
        return torch.float32
    return pick_dtype(dtype, checkpoint)


def training_suite(files: Sequence[DataFile], spec: TrainingSpec) -> Suite:
    """What a training is measured by, on the way and at the end: under DPO preferences, and
    everything else by its targets."""
    return Suite(files=tuple(files), beta=spec.beta if spec.objective == "dpo" else None)


def check_trainable(model: nn.Module, tokenizer: Any | None, where: Path) -> None:
    """Refuse what cannot be trained here.

    Args:
        model, tokenizer: as they were loaded.
        where: from.

    Raises:
        DeltaLensError: the model has no tokenizer, or is no causal language model.
    """
    if tokenizer is None:
        raise DeltaLensError(f"{where}: has no tokenizer; put one beside the model")
    if not can_generate(model):
        raise DeltaLensError(
            f"{where}: {type(model).__name__} is no causal language model, and only those are "
            "trained here"
        )


class TrainingSession:
    """One invocation of a training: from where its folder stands to the end, or until stopped."""

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
        check_trainable(self.model, loaded.tokenizer, checkpoint.path)

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
        if spec.objective == "dpo":
            self.rows, left_out = preferences(rows, tokenizer, longest, self.model)
            text = tokenizer(str(rows.rows[0].completion))["input_ids"]
        else:
            whole = spec.loss_on == "all"
            self.rows, left_out = tokenized(rows, tokenizer, longest, whole, self.model)
            text = self.rows[0]["input_ids"]
        if left_out:
            self.notes.append(f"{left_out:,} of {len(rows.rows):,} rows left out: too long")
        check_model(self.model, text[:longest], self.checkpoint.path)
        measured = training_suite(others, spec)
        if others:
            self.suite = ReadySuite(measured, self.loaded)
        if choosing is not None:
            scoring = measured.scoring(choosing, self.model, tokenizer)
            self.chooser = Chooser(scoring, self.model, self.folder.checkpoints)
        self.longest = longest
        micro = spec.batch_size * spec.accumulate
        self.steps = spec.steps or max(1, int(spec.epochs * -(-len(self.rows) // micro)))
        torch.manual_seed(spec.seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("always", category=UserWarning)
            self.ready: Ready = prepare(spec, self.model)
        self.notes += [str(one.message) for one in told if issubclass(one.category, UserWarning)]
        self.notes += self.ready.notes
        make_savable(self.model)

    def run(
        self, configure: Any, checkpoint_every: int | None, probe: Mapping[str, Any] | None
    ) -> Trained:
        """Take the steps that are left, and write the model."""
        if self.folder.resumed and self.chooser is not None:
            self.chooser.go_back_to(self.folder.last)
        following = Following(self.folder, self.watch, self.evaluate, self.eval_every, self.chooser)
        begun, steps, run = time.perf_counter(), 0, None
        if self.ready.trains:
            steps, run = self._train(configure, checkpoint_every, probe, following)
        seconds = time.perf_counter() - begun
        finished = not following.interrupted
        metrics = self._finish(steps, seconds) if finished else {}
        losses = [line["loss"] for line in self.folder.metrics.lines() if "loss" in line]
        tail = losses[-max(1, len(losses) // 10) :]
        file = self.folder.path / MASKS
        return Trained(
            self.folder.path,
            steps,
            seconds,
            sum(tail) / len(tail) if tail else float("nan"),
            finished,
            metrics,
            tuple(self.notes),
            run,
            file if file.exists() else None,
            self.spec.loss_unit,
        )

    def _train(
        self,
        configure: Any,
        checkpoint_every: int | None,
        probe: Mapping[str, Any] | None,
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
            self.spec,
            configure,
            self.loaded,
            self.ready.model,
            self.rows,
            source=self.checkpoint.path,
            checkpoints=self.folder.checkpoints,
            longest=self.longest,
            steps=self.steps,
            checkpoint_every=checkpoint_every,
            callbacks=[*attached, following],
        )
        self.watch.stage("training", None)
        failed = f"{self.checkpoint.path}: the training failed"
        try:
            with (
                following.interruptible(),
                errors_from("trl", failed),
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
        """Measure the model as it is, and log that."""
        if self.suite is None:
            return {}
        with evaluating(self.model):
            found = self.suite.measure(self.model)
        figures = {name: list(measured) for name, measured in found.items()}
        self.folder.metrics.add({"step": step, "evaluated": figures})
        return found

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
            self.model = self.ready.plain()
            metrics = self.evaluate(steps)
            if gaps := [name for name, m in metrics.items() if not math.isfinite(m.value)]:
                self.notes.append(
                    f"not finite at the end: {', '.join(gaps)}. The training diverged (try a lower "
                    "--lr), or the dtype is too narrow (--dtype)"
                )
            self.watch.stage("writing the model", None)
            self.model.config.use_cache = bool(self.checkpoint.config.get("use_cache", True))
            with errors_from("transformers", f"{made}: cannot be written"):
                self.model.save_pretrained(made)
            names = ("torch", "transformers", "trl", "accelerate", "datasets")
            self.folder.facts |= {
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
