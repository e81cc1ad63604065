"""The evaluation of several models: who is best, and how a training moved over its checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.records import (
    Setting,
    StudyFolder,
    StudyRecord,
    check_study_folder,
    is_training,
    load_study,
    load_training,
)
from deltalens.scoring.loading import (
    Loading,
    check_is_model,
    pick_device,
    pick_dtype,
)
from deltalens.scoring.planning import plan_measuring
from deltalens.scoring.suite import Suite
from deltalens.studies.engine import keep_better, read_weights
from deltalens.studies.evaluate_run import EvaluatedModel, measure_models
from deltalens.studies.measuring import Measuring

__all__ = ["KIND", "evaluate"]

KIND = "evaluate"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def evaluate(
    models: Mapping[str, str | Path], out: str | Path, measuring: Measuring
) -> StudyRecord:
    """Measure several models on the same data.

    Each model is loaded once, with its own tokenizer, and in its own dtype unless one is given. A
    model that is listed twice, or that has the weights of another, is measured once. Every finished
    model is journalled: the same call resumes an interrupted study, and a call with other models
    adds them. A model that cannot be loaded or measured is a failed cell, and the others go on.

    Args:
        models: the name of each model in the records -> its checkpoint folder.
        out: the study's folder.
        measuring: what is measured, and where; `include`, `exclude` and `strict` are not used.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded; or no
            model could be measured.
    """
    out, suite = Path(out), measuring.suite()
    _check(models, suite)
    device = pick_device(measuring.device)
    measuring.execution.check(device)
    listed = [_model(name, open_checkpoint(path), measuring) for name, path in models.items()]
    listed.sort(key=lambda model: _place(model.setting))
    check_study_folder(out, [model.checkpoint.path for model in listed], KIND)
    for model in listed:
        model.loading.check_fits(
            model.checkpoint, suite.batch_tokens, measuring.execution.models_here
        )
    _announce(listed, suite, measuring)
    identity = {
        "models": _by_name({model.name: model.checkpoint.identity for model in listed}),
        **suite.identity(),
        "device": device.type,
        "dtype": measuring.dtype,
        "trust_remote_code": measuring.trust_remote_code,
    }
    columns, grows = STUDIES[KIND].columns, {"models": partial(_both, out)}
    not_comparable = suite.metric_identity.not_comparable
    with StudyFolder.open(
        out, KIND, identity, columns, measuring.fresh, grows, not_comparable
    ) as folder:
        keep_better(folder, suite)
        folder.facts.setdefault("notes", [])
        facts = {model.name: model.facts() for model in listed}
        folder.facts["models"] = _by_name({**folder.facts.get("models", {}), **facts})
        done = {cell.setting["model"]: cell.setting for cell in folder.cells}
        points = {**done, **{model.name: model.setting for model in listed}}
        order = sorted(points.values(), key=_place)
        if all(model.name in done for model in listed):
            folder.write_finished(order)
        else:
            measure_models(listed, order, suite, folder, measuring)
    return load_study(out)


def _check(models: Mapping[str, str | Path], suite: Suite) -> None:
    """Refuse what needs no look at the models."""
    if not models:
        raise DeltaLensError("no model: name one or more to evaluate")
    suite.check_names()
    if suite.wants_fidelity:
        raise DeltaLensError(
            "kl and top1_agreement compare a fine-tune's outputs with its base's, which "
            "`drop-study` measures; leave them out of `metrics` here"
            if suite.metrics
            else "nothing to measure: name `data`, or in `metrics` one that an installed package "
            "measures"
        )


def _model(name: str, checkpoint: Checkpoint, measuring: Measuring) -> EvaluatedModel:
    """A model that is to be measured.

    Raises:
        DeltaLensError: the checkpoint is not a model that can be loaded.
    """
    check_is_model(checkpoint)
    training, step = _place_in_training(name, checkpoint.path)
    loading = Loading(
        pick_dtype(measuring.dtype, checkpoint),
        pick_device(measuring.device),
        measuring.trust_remote_code,
        measuring.device_map,
    )
    setting = {"model": name, "training": training, "step": step}
    return EvaluatedModel(name=name, checkpoint=checkpoint, loading=loading, setting=setting)


def _place_in_training(name: str, path: Path) -> tuple[str, int]:
    """The training that a model belongs to, and the step that it is from: a folder
    `checkpoint-STEP`, or the result of one of our own trainings. ("", 0) of other models."""
    if match := _CHECKPOINT.fullmatch(path.absolute().name):
        return os.path.dirname(name) or path.absolute().parent.name, int(match[1])
    if is_training(path):
        facts = load_training(path).facts
        step = facts.get("chosen_step", facts.get("steps"))
        if isinstance(step, int):
            return name, step
    return "", 0


def _place(setting: Setting) -> tuple[str, int, str]:
    """The place in the table: checkpoints of a training by their steps."""
    return setting["training"] or setting["model"], setting["step"], setting["model"]


def _both(
    out: Path, recorded: Mapping[str, Any], requested: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The models of both calls; None if a measured name stands for another model now. Of one that
    failed, the files may have been put right."""
    common = recorded.keys() & requested.keys()
    changed = {name for name in common if recorded[name] != requested[name]}
    if changed and changed & {*load_study(out).cells["model"]}:
        return None
    return _by_name({**recorded, **requested})


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def _announce(models: Sequence[EvaluatedModel], suite: Suite, measuring: Measuring) -> None:
    """Report what the study requires, and compute the fingerprints for its identity."""
    watch = measuring.watch
    checkpoints = [model.checkpoint for model in models]
    if watch.on_plan is not None:
        largest = max(models, key=lambda model: model.entries)
        plan = plan_measuring(
            "models",
            len(models),
            [largest.checkpoint, *(each for each in checkpoints if each != largest.checkpoint)],
            suite.files,
            largest.loading.dtype,
            largest.loading.device,
            measuring.execution.jobs,
            0,
            suite.task_tokens,
        )
        watch.on_plan(plan)
    read_weights(watch, *checkpoints)
