"""Recipes: options of trl's in a YAML file, checked against trl's own configuration."""

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

_OURS = {
    "output_dir": "the output folder",
    "bf16": "the dtype is the checkpoint's on CUDA and float32 on a CPU; choose with --dtype",
    "fp16": "the dtype is the checkpoint's on CUDA and float32 on a CPU; choose with --dtype",
    "gradient_checkpointing": "an option of `train`",
    "activation_checkpointing": "an option of `train`, called gradient checkpointing",
    "num_train_epochs": "--epochs",
    "max_steps": "--steps",
    "learning_rate": "--learning-rate",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--accumulate",
    "save_steps": "an option of `train`, called checkpoint every",
    "save_strategy": "an option of `train`, called checkpoint every",
    "save_total_limit": "an option of `train`, called checkpoint every",
    "seed": "an option of its own",
    "data_seed": "the seed is an option of its own",
    "max_length": "--max-length",
    "use_cpu": "--device",
    "report_to": "an option of `train`, called probe",
    "resume_from_checkpoint": "an option of `train`, called resume",
    "dataset_kwargs": "the rows are tokenized as drop-study tokenizes them",
    "eval_strategy": "--eval-every",
    "eval_steps": "--eval-every",
    "disable_tqdm": "--quiet",
    "push_to_hub": "nothing is uploaded",
    "hub_token": "nothing is uploaded",
    "trust_remote_code": "an option of `train`",
}
"""Options of trl's that deltalens sets, and what to use instead."""
_LARGEST_RECIPE, _MOST_VALUES, _DEEPEST = 1 << 20, 10_000, 20
"""Bytes of a recipe, values in it with every alias unpacked, and levels."""


def read_recipe(path: Path | None, objective: str) -> dict[str, Any]:
    """The options of a YAML file, checked against trl's configuration class.

    Raises:
        DeltaLensError: the file cannot be read, or has keys that trl does not know, or that
            deltalens sets itself (each with what to use instead).
    """
    if path is None:
        return {}
    import yaml

    content = read_bounded(path, _LARGEST_RECIPE, "recipe", DeltaLensError)
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
