"""What a training was asked to do, and a recipe's options checked against trl's own."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, several
from deltalens.io.pairing import check_scope
from deltalens.numerics.rates import exact_rate, show_rate

__all__ = ["METHODS", "OBJECTIVES", "TrainingAsked", "config_class", "read_recipe"]

METHODS = ("sft", "gmt", "random-mask", "hft")
OBJECTIVES = ("sft", "dpo")

_OURS = {
    "output_dir": "the output folder",
    "bf16": "the dtype is the checkpoint's on CUDA and float32 on a CPU; choose with --dtype",
    "fp16": "the dtype is the checkpoint's on CUDA and float32 on a CPU; choose with --dtype",
    "gradient_checkpointing": "--gradient-checkpointing",
    "activation_checkpointing": "--gradient-checkpointing",
    "num_train_epochs": "--epochs",
    "max_steps": "--steps",
    "learning_rate": "--learning-rate",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--accumulate",
    "save_steps": "--checkpoint-every",
    "save_strategy": "--checkpoint-every",
    "save_total_limit": "--checkpoint-every",
    "seed": "--seed",
    "data_seed": "--seed",
    "max_length": "--max-length",
    "use_cpu": "--device",
    "report_to": "--probe",
    "resume_from_checkpoint": "--resume",
    "dataset_kwargs": "the rows are tokenised as drop-study tokenises them",
    "eval_strategy": "--eval-every",
    "eval_steps": "--eval-every",
    "disable_tqdm": "--quiet",
    "push_to_hub": "nothing is uploaded",
    "hub_token": "nothing is uploaded",
    "trust_remote_code": "--trust-remote-code",
}
"""Options of trl's that deltalens sets, and what to use instead."""


@dataclass(frozen=True, kw_only=True)
class TrainingAsked:
    """Everything that decides what a training leads to, but for the model and the rows."""

    method: str = "sft"
    objective: str = "sft"
    mask_ratio: str = "0.2"
    """The fraction masked out in every step, as typed; unused by sft and hft."""
    scope: str = "tensor"
    apply_to: str = "gradient"
    include: str | None = None
    exclude: str | None = None
    epochs: float = 1.0
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 8
    """Rows in a micro-batch."""
    accumulate: int = 1
    """Micro-batches in a step."""
    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    warmup: float = 0.03
    """The share of the steps over which the learning rate rises; it falls as a cosine (GMT)."""
    seed: int = 0
    max_length: int | None = None
    """Longest row in tokens; the model's positions if not given."""
    loss_on: str = "completion"
    """`completion`, or `all` tokens."""
    gradient_checkpointing: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Further options of trl's configuration."""

    def __post_init__(self) -> None:
        for name, known in (
            ("method", METHODS),
            ("objective", OBJECTIVES),
            ("loss_on", ("completion", "all")),
            ("apply_to", ("gradient", "update")),
        ):
            if getattr(self, name) not in known:
                raise DeltaLensError(
                    f"{name} {getattr(self, name)!r}: choose one of {', '.join(known)}"
                )
        check_scope(self.scope)
        if exact_rate(self.mask_ratio) >= 1:
            raise DeltaLensError(
                f"mask ratio {self.mask_ratio}: in [0, 1), the fraction masked out"
            )
        for name in ("epochs", "batch_size", "accumulate", "learning_rate", "steps", "max_length"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DeltaLensError(f"{name.replace('_', ' ')} {value}: must be above 0")
        if not 0 <= self.warmup < 1:
            raise DeltaLensError(f"warmup {self.warmup}: a share of the steps, in [0, 1)")

    def identity(self) -> dict[str, Any]:
        """As JSON values: two trainings with the same lead to the same."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return found | {"mask_ratio": show_rate(exact_rate(self.mask_ratio))}


def read_recipe(path: Path | None, objective: str) -> dict[str, Any]:
    """The options of a YAML file, checked against trl's configuration class.

    Raises:
        DeltaLensError: the file cannot be read, or has keys that trl does not know, or that
            deltalens sets itself (each with what to use instead).
    """
    if path is None:
        return {}
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeltaLensError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeltaLensError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise DeltaLensError(f"{path}: a recipe is a mapping of trl's options to values")
    known = {one.name for one in dataclasses.fields(config_class(objective)) if one.init}
    faults = []
    for key in found:
        if key in _OURS:
            faults.append(f"{key}: {_OURS[key]}")
        elif key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            faults.append(f"{key}: unknown{f'; did you mean {near[0]}?' if near else ''}")
    if faults:
        raise DeltaLensError(several(f"{path}: options that cannot be set here:", faults))
    return found


def config_class(objective: str) -> Any:
    """trl's configuration of an objective.

    Raises:
        DeltaLensError: trl is not installed.
    """
    try:
        import trl
    except ImportError as error:
        raise DeltaLensError("training needs trl: pip install 'deltalens[train]'") from error
    return trl.DPOConfig if objective == "dpo" else trl.SFTConfig
