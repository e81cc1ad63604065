"""The labels of classification and regression: which classes a model tells apart, and which of them
each row has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.catalog.methods import CLASSIFICATION, REGRESSION
from deltalens.errors import DataError, fault_list
from deltalens.scoring.rows import DataFile

__all__ = ["Labels", "labels_in", "stored_labels"]

_HEADED = "ForSequenceClassification"
"""How transformers' classes end that have a head over whole sequences."""
_MOST_CLASSES = 10_000
_GLUE_HIDDEN = -1
"""GLUE's label of test rows, whose labels are not public."""


@dataclass(frozen=True)
class Labels:
    """What a head over whole sequences predicts: one of some classes, or a score."""

    names: tuple[str, ...] = ()
    """Of the classes, by their numbers; () if a score is predicted."""

    @property
    def objective(self) -> str:
        """`classification` or `regression`."""
        return CLASSIFICATION if self.names else REGRESSION

    def config(self) -> dict[str, Any]:
        """The settings of a transformers configuration that describe these labels.

        Returns:
            `id2label`, `label2id` and `problem_type`.
        """
        names = self.names or ("LABEL_0",)
        kind = "single_label_classification" if self.names else "regression"
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": kind,
        }

    def of(self, data: DataFile) -> list[int] | list[float]:
        """Number the labels of rows.

        Args:
            data: labeled rows.

        Returns:
            The class of each row, or its score.

        Raises:
            DataError: the rows have no labels, or some that the model does not have; the message
                lists line and label of the first 20.
        """
        if not data.labeled:
            raise DataError(f"{data.path}: the rows have no labels, which {self.objective} needs")
        numbers = {name: number for number, name in enumerate(self.names)}
        found: list[Any] = []
        faults: list[str] = []
        for row in data.rows:
            try:
                found.append(self._number(row.label, numbers))
            except ValueError as error:
                faults.append(f"{row.location}: label {_short(row.label)}: {error}")
        if faults:
            count = "1 row" if len(faults) == 1 else f"{len(faults):,} rows"
            headline = f"{data.path}: {count} cannot be used for {self.objective}:"
            raise DataError(fault_list(headline, faults))
        return found

    def _number(self, label: int | float | str | None, numbers: Mapping[str, int]) -> int | float:
        if not self.names:
            if isinstance(label, str):
                raise ValueError("not a score")
            return float(label if label is not None else math.nan)
        if isinstance(label, str):
            if label not in numbers:
                raise ValueError(f"not one of the classes {_list(self.names)}")
            return numbers[label]
        if not isinstance(label, int):
            raise ValueError("not a class, which is a whole number or a name")
        if label == _GLUE_HIDDEN:
            raise ValueError("GLUE's test rows are published without labels; use validation rows")
        if not 0 <= label < len(self.names):
            raise ValueError(f"not one of the {len(self.names)} classes 0 to {len(self.names) - 1}")
        return label


def stored_labels(config: Mapping[str, Any]) -> Labels | None:
    """Read what a checkpoint's own head over sequences predicts.

    Args:
        config: the content of `config.json`, or a live configuration as a mapping.

    Returns:
        The labels; None if the checkpoint is that of another model, which has no such head.

    Raises:
        DataError: each row of the head has several labels at once.
    """
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    if not (isinstance(name, str) and name.endswith(_HEADED)):
        return None
    kind = config.get("problem_type")
    if kind == "multi_label_classification":
        raise DataError(f"{name}: predicts several labels of a row at once; rows have one here")
    stored = config.get("id2label")
    by_number = stored if isinstance(stored, Mapping) and stored else {0: "LABEL_0", 1: "LABEL_1"}
    if kind == "regression" or len(by_number) == 1:
        return Labels()
    try:
        numbered = {int(number): str(name) for number, name in by_number.items()}
    except ValueError as error:
        raise DataError(f"{name}: its id2label has keys that are no numbers: {error}") from error
    return Labels(tuple(numbered[number] for number in sorted(numbered)))


def labels_in(files: Sequence[DataFile], objective: str | None = None) -> Labels:
    """Choose the labels of a new head: those that the rows have.

    Names are numbered in their order as texts, as transformers' `run_glue` does; classes that are
    numbers keep them. Numbers with a fraction or a point (`4.0`) are scores.

    Args:
        files: labeled rows, of training and evaluation.
        objective: `classification` or `regression`; None: what the labels look like.

    Returns:
        The labels.

    Raises:
        DataError: the rows mix kinds of labels, or have too few or too many classes.
    """
    kinds: dict[type, str] = {}
    for file in files:
        for row in file.rows:
            kinds.setdefault(type(row.label), f"{file.path}: {row.location}: {_short(row.label)}")
    numbers = {int, float} & {*kinds}
    if str in kinds and numbers:
        raise DataError(
            fault_list("labels are names in some rows and numbers in others:", [*kinds.values()])
        )
    if objective == REGRESSION or (objective is None and numbers == {float}):
        return Labels()
    if float in kinds:
        advice = "for scores, give the objective regression; for classes, write whole numbers"
        mixed = "labels are whole numbers in some rows and fractions in others; "
        statement = mixed if int in kinds else "labels are scores, not classes; "
        raise DataError(fault_list(statement + advice + ":", [*kinds.values()]))
    where = str(files[0].path)
    distinct = {row.label for file in files for row in file.rows}
    if str in kinds:
        names = tuple(sorted(str(label) for label in distinct))
    else:
        highest = max(label for label in distinct if isinstance(label, int))
        count = min(max(2, highest + 1), _MOST_CLASSES + 1)
        names = tuple(f"LABEL_{number}" for number in range(count))
    if len(distinct) < 2:
        raise DataError(f"{where}: every label is {_short(min(distinct, key=str))}: one class only")
    if len(names) > _MOST_CLASSES:
        raise DataError(
            f"{where}: more than {_MOST_CLASSES:,} classes; for scores, give the objective "
            "regression"
        )
    return Labels(names)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(_short, names[:10])) + (", ..." if len(names) > 10 else "")


def _short(label: object) -> str:
    return repr(label)[:60]
