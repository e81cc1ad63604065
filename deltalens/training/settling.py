"""What rows decide of a training before a model is loaded: its objective, its classes, its head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deltalens.catalog.methods import LABELED, REGRESSION
from deltalens.errors import DataError, DeltaLensError
from deltalens.scoring.labels import Labels, labels_in, stored_labels
from deltalens.scoring.loading import Head
from deltalens.scoring.rows import DataFile
from deltalens.training.spec import TrainingSpec, config_class

__all__ = ["check_head", "head_for", "settled"]


def settled(
    spec: TrainingSpec, config: Mapping[str, Any], rows: DataFile, others: Sequence[DataFile]
) -> TrainingSpec:
    """Settle what a training learns: rows with labels decide it, and their classes.

    Args:
        spec: the training, as the caller gave it or settled before.
        config: the content of the model's `config.json`.
        rows: what is trained on.
        others: what is measured.

    Returns:
        The training with its objective.

    Raises:
        DeltaLensError: rows and objective do not go together, the model's own head does not have
            the rows' labels, or an option does not exist there.
    """
    labeled = [file for file in (rows, *others) if file.labeled]
    if not rows.labeled:
        if spec.objective in LABELED:
            raise DataError(
                f"{rows.path}: {spec.objective} needs rows with 'sentence1', 'sentence2' (or one "
                "sentence) and 'label'"
            )
        if labeled:
            raise DataError(
                f"{labeled[0].path}: has labels, but the rows to train on have none: {rows.path}"
            )
        return spec
    if spec.objective == "dpo":
        raise DataError(f"{rows.path}: the rows have labels: DPO learns from preferences")
    stored = stored_labels(config)
    if stored is not None:
        labels = stored
    elif spec.labels or spec.objective == REGRESSION:
        labels = Labels(spec.labels)
    else:
        labels = labels_in(labeled, spec.objective if spec.objective in LABELED else None)
    if spec.objective in LABELED and spec.objective != labels.objective:
        raise DataError(
            f"{spec.objective}: the model's own head is for {labels.objective}; start from a model "
            "without a head"
        )
    for file in (rows, *others):
        labels.of(file)
    _check_options(spec, labels.objective)
    return dataclasses.replace(
        spec, objective=labels.objective, labels=labels.names, accumulate_mean="batch"
    )


def _check_options(spec: TrainingSpec, objective: str) -> None:
    """Refuse options of language modeling."""
    if spec.loss_on != "completion":
        raise DeltaLensError(f"loss_on {spec.loss_on!r}: the loss of {objective} is on labels")
    known = {each.name for each in dataclasses.fields(config_class(objective)) if each.init}
    if unknown := [name for name in spec.recipe if name not in known]:
        raise DeltaLensError(
            f"{', '.join(unknown)}: options of trl's trainer; {objective} takes those of "
            "transformers.TrainingArguments"
        )


def head_for(spec: TrainingSpec, config: Mapping[str, Any]) -> Head | None:
    """Choose the new head that a model needs to be trained.

    Args:
        spec: the training, settled.
        config: the content of the model's `config.json`.

    Returns:
        The head; None if the model has one, or needs none.
    """
    if spec.objective not in LABELED or stored_labels(config) is not None:
        return None
    return Head(Labels(spec.labels), spec.seed)


def check_head(spec: TrainingSpec, config: Mapping[str, Any]) -> None:
    """Refuse a method that leaves a new head as it was drawn.

    Args:
        spec: the training, settled.
        config: the content of the model's `config.json`.

    Raises:
        DeltaLensError: the method trains nothing, and the model needs a new head.
    """
    if head_for(spec, config) is not None and not spec.method.facts.trains:
        raise DeltaLensError(
            f"method {spec.method.name}: trains nothing, so a new head for {spec.objective} would "
            "stay random; train the model first (method sft), and start from that"
        )
