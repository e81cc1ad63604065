"""Specifications of trainings, from a method's settings and the shared ones side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.io.records import StudyRecord
from deltalens.studies.training_plans import TrainingData
from deltalens.training.calibration import CalibrationBatches
from deltalens.training.methods import Method, method_of, read_methods
from deltalens.training.spec import TrainingSpec

NO_ROWS = CalibrationBatches([], lambda rows: {}, 1, 0)
"""For a method that looks at no rows before it trains."""
_SHARED = {field.name for field in dataclasses.fields(TrainingSpec)}


def training_spec(method: str = "sft", **settings: Any) -> TrainingSpec:
    """The specification of a training: what `TrainingSpec` does not have is the method's own."""
    own, shared = _split(settings)
    return TrainingSpec(method=method_of(method, **own), **shared)


def study_spec(methods: str | Sequence[str], **settings: Any) -> tuple[list[Method], TrainingSpec]:
    """What a study of trainings takes: its methods, and what they share. Settings that
    `TrainingSpec` does not have are those of all methods that have them."""
    own, shared = _split(settings)
    return read_methods(methods, own), TrainingSpec(**shared)


def run_study(
    function: Callable[..., StudyRecord],
    methods: str | Sequence[str],
    source: TrainingData,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    **axes: Any,
) -> StudyRecord:
    """Run a study of trainings with settings side by side, as `study_spec` takes them."""
    chosen, spec = study_spec(methods, **(settings or {}))
    return function(chosen, source, out, spec, **axes)


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {name: value for name, value in settings.items() if name not in _SHARED}
    return own, {name: value for name, value in settings.items() if name in _SHARED}
