"""trl's trainer, set up for a training of ours."""

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
from deltalens.training.rows import collator
from deltalens.training.spec import TrainingSpec

__all__ = ["make_savable", "make_trainer"]

_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


def make_trainer(
    spec: TrainingSpec,
    configure: Any,
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
    """Set up trl's trainer, without its own output on the terminal.

    Args:
        spec: the training.
        configure: the class of its configuration.
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
        A `trl.SFTTrainer` or `trl.DPOTrainer`.

    Raises:
        DeltaLensError: trl refuses these settings, or this model.
    """
    import trl

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
        "max_length": longest,
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
        **spec.recipe,
    }
    if spec.objective == "dpo":
        made: Any = trl.DPOTrainer
    else:
        made = trl.SFTTrainer
        options["dataset_kwargs"] = {"skip_prepare_dataset": True}
    with errors_from("trl", "the settings cannot be used"):
        config = configure(**options)
    with (
        errors_from("trl", f"{source}: cannot be trained so"),
        _tensorboard_in(checkpoints.parent / "tensorboard"),
    ):
        trainer = made(
            model=model,
            args=config,
            train_dataset=rows,
            data_collator=collator(config, loaded.tokenizer, loaded.model),
            processing_class=loaded.tokenizer,
            callbacks=[*callbacks],
            **_reference(spec, config, loaded, model),
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
        model: its `generation_config` is replaced if it is not valid.
    """
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = type(config)(**{name: getattr(config, name) for name in names})


def _reference(spec: TrainingSpec, config: Any, loaded: LoadedModel, model: Any) -> dict[str, Any]:
    """The reference model of DPO, loaded as the model was: trl would load it from whatever files
    the folder holds."""
    not_needed = spec.objective != "dpo" or hasattr(model, "peft_config")
    if not_needed or config.precompute_ref_log_probs or loaded.again is None:
        return {}
    return {"ref_model": loaded.again().model}


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
