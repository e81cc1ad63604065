"""Training a model by a named method: one sitting, from the loaded model to the written one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback

from deltalens.errors import DeltaLensError, RecordError, reason, said_by
from deltalens.evaluate.finite import check_model
from deltalens.evaluate.loading import LoadedModel, load_model, pick_device, pick_dtype
from deltalens.evaluate.positions import longest_input
from deltalens.evaluate.preferences import Preferences
from deltalens.evaluate.rows import DataFile, read_files, read_rows
from deltalens.evaluate.scoring import Scoring, can_generate
from deltalens.integrations.transformers import GradientProbeCallback
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.fingerprint import take_fingerprints
from deltalens.io.records import Measurement
from deltalens.training.asked import METHODS, TrainingAsked, config_class
from deltalens.training.choosing import Chooser
from deltalens.training.folder import MASKS, TrainingFolder
from deltalens.training.measuring import scoring_of
from deltalens.training.methods import Ready, prepare
from deltalens.training.rows import collator, preferences, tokenised

__all__ = ["Trained", "TrainingWatch", "check_trainable", "train", "training_dtype"]


@dataclass
class TrainingWatch:
    """How a training tells what it is doing; every hook may be left as it is."""

    stage: Callable[[str, int | None], None] = field(default=lambda name, total: None)
    """A stage begins: its name, and its number of steps if known."""
    at: Callable[[int, int], None] = field(default=lambda done, total: None)
    """So many steps of all are done."""
    say: Callable[[str], None] = field(default=lambda text: None)
    """The latest figures, on one line."""


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
    asked: TrainingAsked,
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
    trust_remote_code: bool = False,
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
        asked: the method and its settings.
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
        trust_remote_code: run model code that the checkpoint brings.
        watch: told of stages and steps.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch = watch or TrainingWatch()
    asked = dataclasses.replace(asked, method=asked.method or "sft")
    if asked.method not in METHODS:
        raise DeltaLensError(
            f"method {asked.method!r}: only studies know it; choose one of {', '.join(METHODS)}"
        )
    configure = config_class(asked.objective)
    rows = read_rows(data, limit, fields)
    others = read_files(eval_data, None, fields)
    choosing = read_rows(choose_on, None, fields) if choose_on is not None else None
    checkpoint = open_checkpoint(model)
    where = pick_device(device)
    kind = training_dtype(dtype, checkpoint, where)
    take_fingerprints([checkpoint], watch.stage, watch.at)
    identity = {
        **asked.identity(),
        "model": checkpoint.identity,
        "data": rows.identity,
        "eval_data": [file.identity for file in others],
        "eval_every": eval_every,
        "choose_on": choosing.identity if choosing else None,
        "device": where.type,
        "dtype": str(kind).removeprefix("torch."),
        "probe": dict(probe) if probe is not None else None,
        "trust_remote_code": trust_remote_code,
    }
    folder = TrainingFolder(Path(out), identity, [checkpoint.path], resume)
    watch.stage("loading the model", None)
    loaded = load_model(checkpoint, kind, where, trust_remote_code)
    sitting = _Sitting(asked, folder, checkpoint, loaded, watch, eval_every)
    sitting.prepare(rows, others, choosing)
    folder.begin()
    try:
        return sitting.run(configure, checkpoint_every, probe, resume)
    except Exception:
        if not resume and not sitting.taken:
            folder.abandon()
        raise


def training_dtype(dtype: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """In which dtype a model is trained: `auto` is fp32 on a CPU, else the checkpoint's."""
    if dtype == "auto" and device.type == "cpu":
        return torch.float32
    return pick_dtype(dtype, checkpoint)


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


class _Sitting:
    """One sitting of a training."""

    def __init__(
        self,
        asked: TrainingAsked,
        folder: TrainingFolder,
        checkpoint: Checkpoint,
        loaded: LoadedModel,
        watch: TrainingWatch,
        eval_every: int | None,
    ) -> None:
        self.asked, self.folder, self.checkpoint = asked, folder, checkpoint
        self.model: Any = loaded.model
        self.loaded, self.watch, self.eval_every = loaded, watch, eval_every
        self.notes: list[str] = []
        self.scorings: list[Scoring | Preferences] = []
        self.chooser: Chooser | None = None
        self.rows: Any = None
        self.taken = 0
        """Steps of this sitting."""
        check_trainable(self.model, loaded.tokenizer, checkpoint.path)

    def prepare(
        self, rows: DataFile, others: Sequence[DataFile], choosing: DataFile | None
    ) -> None:
        """Tokenise what is trained on and what is measured; make the model ready."""
        tokenizer: Any = self.loaded.tokenizer
        asked = self.asked
        self.watch.stage("tokenising", None)
        longest = longest_input(self.model)
        if asked.max_length is not None:
            longest = min(asked.max_length, longest or asked.max_length)
        if asked.objective == "dpo":
            self.rows, left_out = preferences(rows, tokenizer, longest, self.model)
            text = tokenizer(str(rows.rows[0].completion))["input_ids"]
        else:
            whole = asked.loss_on == "all"
            self.rows, left_out = tokenised(rows, tokenizer, longest, whole, self.model)
            text = self.rows[0]["input_ids"]
        if left_out:
            self.notes.append(f"{left_out:,} of {len(rows.rows):,} rows left out: too long")
        check_model(self.model, text[:longest], self.checkpoint.path)
        for file in others:
            self.scorings.append(scoring_of(file, asked, self.model, tokenizer))
        if choosing is not None:
            scoring = scoring_of(choosing, asked, self.model, tokenizer)
            self.chooser = Chooser(scoring, self.model, self.folder.checkpoints)
        self.longest = longest
        micro = asked.batch_size * asked.accumulate
        self.steps = asked.steps or max(1, int(asked.epochs * -(-len(self.rows) // micro)))
        torch.manual_seed(asked.seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("always", category=UserWarning)
            self.ready: Ready = prepare(asked, self.model)
        self.notes += [str(one.message) for one in told if issubclass(one.category, UserWarning)]
        self.notes += self.ready.notes
        _make_savable(self.model)

    def run(
        self,
        configure: Any,
        checkpoint_every: int | None,
        probe: Mapping[str, Any] | None,
        resume: bool,
    ) -> Trained:
        """Take the steps that are left, and write the model."""
        last = self.folder.last_checkpoint() if resume else None
        first = int(last.name.rpartition("-")[2]) if last else 0
        if resume:
            self.folder.forget_after(first)
            if self.chooser is not None:
                self.chooser.forget_after(first)
        callbacks: list[TrainerCallback] = list(self.ready.callbacks)
        run = None
        if probe is not None and self.ready.trains:
            run = self.folder.run_folder(first)
            _set_aside(run)
            callbacks.append(GradientProbeCallback(run, **self.ready.watched, **probe))
        following = _Following(self)
        begun, steps = time.perf_counter(), 0
        if self.ready.trains:
            trainer = self._trainer(configure, checkpoint_every, [*callbacks, following])
            self.watch.stage("training", None)
            failed = f"{self.checkpoint.path}: the training failed"
            with following.interruptible(), said_by("trl", failed), self._room():
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            steps = int(trainer.state.global_step)
        seconds = time.perf_counter() - begun
        metrics: dict[str, Measurement] = {}
        finished = not following.interrupted
        if finished:
            if self.chooser is not None and steps:
                self.folder.facts["chosen_step"] = self.chooser.restore()
            made = self._made()
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
            self._finish(made, steps, seconds)
        losses = [line["loss"] for line in self.folder.metrics() if "loss" in line]
        tail = losses[-max(1, len(losses) // 10) :]
        loss = sum(tail) / len(tail) if tail else float("nan")
        notes = tuple(self.notes)
        file = self.folder.path / MASKS
        return Trained(
            self.folder.path,
            steps,
            seconds,
            loss,
            finished,
            metrics,
            notes,
            run,
            file if file.exists() else None,
            self.asked.loss_unit,
        )

    @contextmanager
    def _room(self) -> Iterator[None]:
        """A checkpoint that the disk does not take is an error of its own: each of the libraries
        that write one has its own way to say so."""
        try:
            yield
        except Exception as error:
            text = str(error)
            if not (
                isinstance(error, OSError | SafetensorError)
                or "PytorchStreamWriter" in text
                or "inline_container" in text
            ):
                raise
            raise RecordError(
                f"{self.folder.checkpoints}: a checkpoint cannot be written ({text.splitlines()[0]}"
                "); the last whole one is kept: make room, and resume: it goes on from there"
            ) from error

    def _trainer(
        self, configure: Any, checkpoint_every: int | None, callbacks: list[TrainerCallback]
    ) -> Any:
        import trl

        asked, steps = self.asked, self.steps
        options: dict[str, Any] = {
            "output_dir": str(self.folder.checkpoints),
            "num_train_epochs": asked.epochs,
            "max_steps": asked.steps or -1,
            "per_device_train_batch_size": asked.batch_size,
            "gradient_accumulation_steps": asked.accumulate,
            "learning_rate": asked.peak_learning_rate,
            "weight_decay": asked.weight_decay,
            "warmup_steps": int(asked.warmup * steps),
            "lr_scheduler_type": "cosine",
            "seed": asked.seed,
            "max_length": self.longest,
            "bf16": False,
            "fp16": False,
            _checkpointing_option(configure): asked.gradient_checkpointing,
            "use_cpu": self.loaded.device.type == "cpu",
            "dataloader_pin_memory": False,
            "save_strategy": "steps",
            "save_steps": checkpoint_every or max(1, steps // 10),
            "save_total_limit": 2,
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            **asked.recipe,
        }
        if asked.objective == "dpo":
            made: Any = trl.DPOTrainer
        else:
            made = trl.SFTTrainer
            options["dataset_kwargs"] = {"skip_prepare_dataset": True}
        with said_by("trl", "the settings cannot be used"):
            config = configure(**options)
        with said_by("trl", f"{self.checkpoint.path}: cannot be trained so"):
            trainer = made(
                model=self.ready.model,
                args=config,
                train_dataset=self.rows,
                data_collator=collator(config, self.loaded.tokenizer, self.model),
                processing_class=self.loaded.tokenizer,
                callbacks=callbacks,
            )
        if asked.accumulate_mean == "batch":
            # A trainer that counts no tokens takes each micro-batch's mean, and divides by their
            # number.
            trainer.model_accepts_loss_kwargs = False
        for spoken in ("PrinterCallback", "ProgressCallback"):
            _silence(trainer, spoken)
        return trainer

    def evaluate(self, step: int) -> dict[str, Measurement]:
        """Measure the model as it is, and log that."""
        if not self.scorings:
            return {}
        training = self.model.training
        self.model.eval()
        found = {
            (f"{scoring.name}/{name}" if len(self.scorings) > 1 else name): measured
            for scoring in self.scorings
            for name, measured in scoring.measure(self.model).items()
        }
        self.model.train(training)
        figures = {name: list(measured) for name, measured in found.items()}
        self.folder.log({"step": step, "evaluated": figures})
        return found

    def _made(self) -> Path:
        """Where the result is written before it is moved into its place."""
        made = self.folder.path / ".model"
        made.mkdir(exist_ok=True)
        return made

    def _finish(self, made: Path, steps: int, seconds: float) -> None:
        self.watch.stage("writing the model", None)
        self.model.config.use_cache = bool(self.checkpoint.config.get("use_cache", True))
        try:
            with said_by("transformers", f"{made}: cannot be written"):
                self.model.save_pretrained(made)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or reason(error)
            raise RecordError(f"{made}: cannot be written: {why}") from error
        names = ("torch", "transformers", "trl", "accelerate", "datasets")
        self.folder.facts |= {
            "steps": steps,
            "seconds": round(seconds, 3),
            "model": str(self.checkpoint.path),
            "notes": self.notes,
            "units": {"loss": self.asked.loss_unit},
            "versions": {name: importlib.metadata.version(name) for name in names},
        }
        self.folder.write_record()
        self.folder.finish(made, self.checkpoint.folder)


def _checkpointing_option(configure: Any) -> str:
    """transformers renamed it."""
    return (
        "activation_checkpointing"
        if "activation_checkpointing" in {one.name for one in dataclasses.fields(configure)}
        else "gradient_checkpointing"
    )


def _make_savable(model: Any) -> None:
    """transformers does not write a generation configuration that contradicts itself once trl has
    set its padding token; the checkpoint's own file comes with the result as it is."""
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = type(config)(**{one: getattr(config, one) for one in names})


def _silence(trainer: Any, name: str) -> None:
    for one in list(trainer.callback_handler.callbacks):
        if type(one).__name__ == name:
            trainer.remove_callback(one)


def _set_aside(run: Path) -> None:
    """A sitting that was killed before its first checkpoint may have left a run."""
    if run.exists():
        number = 1
        while (aside := run.with_name(f"{run.name}.lost-{number}")).exists():
            number += 1
        os.replace(run, aside)


class _Following(TrainerCallback):
    """Progress, metrics, evaluations, and what an interruption does."""

    def __init__(self, sitting: _Sitting) -> None:
        self.sitting = sitting
        self.interrupted = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the training after the step, with a checkpoint; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self.sitting.watch.say("stopping after this step; a checkpoint is written first")

        before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Progress, and the evaluation if it is due."""
        self.sitting.taken += 1
        self.sitting.watch.at(state.global_step, state.max_steps)
        last = state.global_step >= state.max_steps
        if self.interrupted and not last:
            control.should_save = control.should_training_stop = True
        self.interrupted = self.interrupted and not last
        every, chooser = self.sitting.eval_every, self.sitting.chooser
        if every and state.global_step % every == 0 and not last:
            self.sitting.evaluate(state.global_step)
        often = every or max(1, state.max_steps // 10)
        if chooser is not None and (state.global_step % often == 0 or last):
            line = {"step": state.global_step, "choosing": chooser.look(state.global_step)}
            self.sitting.folder.log(line)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A line of the metrics."""
        logs = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        line = {"step": state.global_step, "loss": float(logs["loss"])}
        for name in ("learning_rate", "grad_norm", "rewards/accuracies", "rewards/margins"):
            if name in logs:
                line[name] = float(logs[name])
        self.sitting.folder.log(line)
        self.sitting.watch.say(f"loss {line['loss']:.4f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint has been written."""
        name = f"checkpoint-{state.global_step}"
        self.sitting.folder.complete(self.sitting.folder.checkpoints / name)
        if self.sitting.chooser is not None:
            self.sitting.chooser.tidy(state.global_step)
