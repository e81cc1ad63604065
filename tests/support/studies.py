"""The studies of finished models, with every option as an argument of its own.

The functions of `deltalens` check models and folders first, and take no `fidelity`; those behind
them take one `Measuring`, which has one `Execution`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from deltalens.io.records import StudyRecord
from deltalens.studies import drop_study as _drop_study
from deltalens.studies import evaluate as _evaluate
from deltalens.studies import layer_drop as _layer_drop
from deltalens.studies.executors import Execution
from deltalens.studies.landscape import scan as _scan
from deltalens.studies.measuring import Measuring

__all__ = ["drop_study", "evaluate", "scan_landscape", "sweep_layers_drop"]

_EXECUTION = {field.name for field in fields(Execution)}
_MEASURING = {field.name for field in fields(Measuring)}


def _flat(function: Callable[..., StudyRecord]) -> Callable[..., StudyRecord]:
    """Take the fields of `Measuring`, and of its `Execution`, as arguments."""
    own = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "measuring"
    ]

    @wraps(function)
    def flat(*args: Any, **options: Any) -> StudyRecord:
        execution = {name: options.pop(name) for name in _EXECUTION & {*options}}
        measuring = {name: options.pop(name) for name in _MEASURING & {*options}}
        if execution:
            measuring["execution"] = Execution(**execution)
        return function(*args, measuring=Measuring(**measuring), **options)

    shared = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in _MEASURING]
    flat.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return flat


drop_study = _flat(_drop_study.drop_study)
evaluate = _flat(_evaluate.evaluate)
sweep_layers_drop = _flat(_layer_drop.sweep_layers_drop)
scan_landscape = _flat(_scan.scan_landscape)
