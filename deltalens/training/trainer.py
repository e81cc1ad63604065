"""The trainer of trl or transformers, set up for a training of ours."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from deltalens.errors import errors_from
from deltalens.scoring.loading import LoadedModel
from deltalens.training.objectives import Objective
from deltalens.training.spec import config_class

__all__ = ["make_savable", "make_trainer"]

_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


def make_trainer(
    objective: Objective,
    loaded: LoadedModel,
    model: Any,
    rows: Any,
    *,
    source: Path,
    checkpoints: Path,
    longest: int | None,
    steps: int,
    checkpoint_every: int | None,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback],
) -> Any:
    """Set up the objective's trainer, without its own output on the terminal.

    Args:
        objective: of the training, with its specification.
        loaded: the model as it was loaded, with its tokenizer and device.
        model: what is trained: that model, or an adapter around it.
        rows: the rows to train on, tokenized.
        source: the model's folder, for messages.
        checkpoints: the folder for checkpoints.
        longest: most tokens in a row.
        steps: optimizer steps of the whole training.
        checkpoint_every: steps between checkpoints; a tenth of the training if not given.
        report_to: trackers of transformers that are told of the training.
        callbacks: called at every step, in this order.

    Returns:
        A `trl.SFTTrainer`, `trl.DPOTrainer` or `transformers.Trainer`.

    Raises:
        DeltaLensError: it refuses these settings, or this model.
    """
    spec = objective.spec
    configure = config_class(spec.objective)
    options: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "num_train_epochs": spec.epochs,
        "max_steps": spec.steps or -1,
        "per_device_train_batch_size": spec.batch_size,
        "gradient_accumulation_steps": spec.accumulate,
        "learning_rate": spec.peak_learning_rate,
        "weight_decay": spec.weight_decay,
        "warmup_steps": int(spec.warmup * steps),
        "lr_scheduler_type": "cosine",
        "seed": spec.seed,
        "bf16": False,
        "fp16": False,
        _checkpointing_option(configure): spec.gradient_checkpointing,
        "use_cpu": loaded.device.type == "cpu",
        "dataloader_pin_memory": False,
        "save_strategy": "steps",
        "save_steps": checkpoint_every or max(1, steps // 10),
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": [*report_to],
        "disable_tqdm": True,
        **objective.options(longest),
        **spec.recipe,
    }
    with errors_from(objective.library, "the settings cannot be used"):
        config = configure(**options)
    with (
        errors_from(objective.library, f"{source}: cannot be trained so"),
        _tensorboard_in(checkpoints.parent / "tensorboard"),
    ):
        trainer = objective.trainer(
            config, loaded, model, train_dataset=rows, callbacks=[*callbacks]
        )
    if spec.accumulate_mean == "batch":
        # A trainer that counts no tokens takes each micro-batch's mean, and divides by their
        # number.
        trainer.model_accepts_loss_kwargs = False
    for spoken in ("PrinterCallback", "ProgressCallback"):
        _silence(trainer, spoken)
    return trainer


@contextmanager
def _tensorboard_in(folder: Path) -> Iterator[None]:
    """Where TensorBoard's events go, unless the caller has said so: transformers would write them
    beside its checkpoints, which are removed at the end."""
    if _TENSORBOARD in os.environ:
        yield
        return
    os.environ[_TENSORBOARD] = str(folder)
    try:
        yield
    finally:
        del os.environ[_TENSORBOARD]


def make_savable(model: Any) -> None:
    """Make a model's generation configuration one that transformers writes: it refuses one that
    contradicts itself, which it may once trl has set a padding token. (The checkpoint's own file is
    copied into the result as it is.)

    Args:
        model: its `generation_config` is replaced if it has one that is not valid.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = type(config)(**{name: getattr(config, name) for name in names})


def _checkpointing_option(configure: Any) -> str:
    """The option's name, which differs between versions of transformers."""
    return (
        "activation_checkpointing"
        if "activation_checkpointing" in {field.name for field in dataclasses.fields(configure)}
        else "gradient_checkpointing"
    )


def _silence(trainer: Any, name: str) -> None:
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == name:
            trainer.remove_callback(callback)
