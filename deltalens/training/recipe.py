"""Further options of trl in a YAML file, checked against trl's own configuration class."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, errors_from, fault_list
from deltalens.io.files import read_bounded
from deltalens.training.spec import config_class

__all__ = ["read_recipe"]

_DTYPE = "give dtype instead; auto is the checkpoint's on CUDA and float32 on a CPU"
_OURS = {
    "output_dir": "give out instead",
    "bf16": _DTYPE,
    "fp16": _DTYPE,
    "gradient_checkpointing": "give gradient_checkpointing to deltalens instead",
    "activation_checkpointing": "give gradient_checkpointing to deltalens instead",
    "num_train_epochs": "give epochs instead",
    "max_steps": "give steps instead",
    "learning_rate": "give learning_rate to deltalens instead",
    "per_device_train_batch_size": "give batch_size instead",
    "gradient_accumulation_steps": "give accumulate instead",
    "save_steps": "give checkpoint_every instead",
    "save_strategy": "give checkpoint_every instead",
    "save_total_limit": "the last two checkpoints are kept",
    "seed": "give seed to deltalens instead",
    "data_seed": "give seed to deltalens instead",
    "max_length": "give max_length to deltalens instead",
    "use_cpu": "give device instead",
    "report_to": "give report_to to deltalens instead",
    "resume_from_checkpoint": "give resume instead",
    "dataset_kwargs": "the rows are tokenized as studies tokenize what they measure",
    "eval_strategy": "give eval_every instead",
    "eval_steps": "give eval_every instead",
    "disable_tqdm": "deltalens shows its own progress",
    "push_to_hub": "nothing is uploaded",
    "hub_token": "nothing is uploaded",
    "trust_remote_code": "give trust_remote_code to deltalens instead",
}
"""Options of trl's that deltalens sets, and what to use instead."""
_LARGEST_RECIPE, _MOST_VALUES, _DEEPEST = 1 << 20, 10_000, 20
"""Bytes of a recipe, values in it with every alias unpacked, and levels."""


def read_recipe(path: Path | None, objective: str) -> dict[str, Any]:
    """Read options of trl from a YAML file.

    Args:
        path: the file; None: there is none.
        objective: `sft` or `dpo`.

    Returns:
        Name of the option -> value.

    Raises:
        DeltaLensError: the file cannot be read, or has keys that trl does not know, or that
            deltalens sets itself (each with what to use instead).
    """
    if path is None:
        return {}
    import yaml

    content = read_bounded(path, _LARGEST_RECIPE, "a recipe", DeltaLensError)
    with errors_from("yaml", f"{path}: not YAML"):
        found = yaml.safe_load(content.decode("utf-8-sig"))
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise DeltaLensError(f"{path}: a recipe is a mapping of trl's options to values")
    _check_plain(path, found)
    known = {one.name for one in dataclasses.fields(config_class(objective)) if one.init}
    faults = []
    for key in found:
        if key in _OURS:
            faults.append(f"{key}: {_OURS[key]}")
        elif key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            faults.append(f"{key}: unknown{f'; did you mean {near[0]}?' if near else ''}")
    if faults:
        raise DeltaLensError(fault_list(f"{path}: options that cannot be set here:", faults))
    return found


def _check_plain(path: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse what JSON cannot say (dates, sets, cycles), and aliases that unpack without end."""
    left = _MOST_VALUES

    def count(key: str, value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise DeltaLensError(
                f"{path}: {key}: unpacks to more than {_MOST_VALUES:,} values, or {_DEEPEST} "
                "levels; a recipe holds a few options"
            )
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            for inner in value.values():
                count(key, inner, depth + 1)
        elif isinstance(value, list):
            for inner in value:
                count(key, inner, depth + 1)
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            kind = type(value).__name__
            raise DeltaLensError(
                f"{path}: {key}: a {kind}, where options are numbers, texts, lists and mappings; "
                "put it in quotes if it is a text"
            )

    for key, value in recipe.items():
        count(textwrap.shorten(key, 80), value, 0)
