"""What a training was asked to do, and a recipe's options checked against trl's own."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, several
from deltalens.io.pairing import check_scope
from deltalens.numerics.rates import exact_rate, show_rate

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "WEIGHT_MASKS",
    "TrainingAsked",
    "config_class",
    "read_recipe",
]

WEIGHT_MASKS = ("mft", "random-mask-weights", "l1-mask")
"""Methods that remove weights; only the first one trains."""
METHODS = ("sft", "gmt", "random-mask", "hft", *WEIGHT_MASKS, "lora")
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
    mask_ratio: str | None = None
    """As typed. Of gmt and random-mask the fraction masked out in every step, 0.2 if not given; of
    methods that remove weights the fraction removed, 0.1, also `attention=0.1,mlp=0.05`."""
    scope: str = "tensor"
    apply_to: str = "gradient"
    include: str | None = None
    exclude: str | None = None
    blocks: str = "all"
    """Whose weights are masked: `4-7,12`."""
    modules: str = "attention,mlp"
    threshold: float | None = None
    """Scores at or below it lose their weights (mft), instead of a ratio."""
    rank_by: str = "magnitude"
    init_std: float = 0.02
    """Of the scores."""
    lora_rank: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.1
    epochs: float = 1.0
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 8
    """Rows in a micro-batch."""
    accumulate: int = 1
    """Micro-batches in a step."""
    learning_rate: float = 2e-5
    score_learning_rate: float | None = None
    """Of the scores (mft); the same if not given."""
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
        for ratio in self.ratios.values():
            if ratio >= 1:
                raise DeltaLensError(
                    f"mask ratio {show_rate(ratio)}: in [0, 1), the fraction masked out"
                )
        if self.threshold is not None and self.mask_ratio is not None:
            raise DeltaLensError("a threshold and a mask ratio: give one of them")
        if self.method in ("gmt", "random-mask") and "" not in self.ratios:
            raise DeltaLensError(f"mask ratio {self.mask_ratio}: {self.method} takes a single one")
        for name in (
            *("epochs", "batch_size", "accumulate", "learning_rate", "steps", "max_length"),
            *("lora_rank", "lora_alpha", "score_learning_rate"),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DeltaLensError(f"{name.replace('_', ' ')} {value}: must be above 0")
        if not 0 <= self.warmup < 1:
            raise DeltaLensError(f"warmup {self.warmup}: a share of the steps, in [0, 1)")

    @property
    def ratios(self) -> dict[str, Fraction]:
        """The mask ratio of each kind of layer; a single one stands under ''."""
        default = "0.1" if self.method in WEIGHT_MASKS else "0.2"
        parts = [part.rpartition("=") for part in (self.mask_ratio or default).split(",")]
        return {kind.strip(): exact_rate(ratio) for kind, _, ratio in parts}

    @property
    def peak_learning_rate(self) -> float:
        """The method's."""
        own = self.score_learning_rate if self.method == "mft" else None
        return own or self.learning_rate

    def identity(self) -> dict[str, Any]:
        """As JSON values: two trainings with the same lead to the same."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        shown = {kind: show_rate(ratio) for kind, ratio in self.ratios.items()}
        return found | {"mask_ratio": shown.get("", shown)}


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
