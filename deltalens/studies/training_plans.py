"""What a study of trainings is asked for: methods with their settings, data, and how each cell's
model comes about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import METHODS, options_of
from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import Setting
from deltalens.studies import axes
from deltalens.training.spec import TrainingSpec, check_own

__all__ = ["Plan", "Plans", "TrainingData", "cells_own", "check_trainings"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the model of a cell comes about."""

    spec: TrainingSpec
    """The training."""
    start: str | Path | None = None
    """The checkpoint that it starts from; the study's model if not given."""
    rows: int | None = None
    """Only the first so many rows of the data."""
    drop: str | None = None
    """Instead: this share of the smallest deltas of that training is put back (One-off Drop)."""
    continued: bool = False
    """Instead: the same training once more, from the result of that one."""
    scope: str = "tensor"
    """What is ranked together for that."""
    still: str | Path | None = None
    """Instead: this checkpoint as it is."""
    lacks: str | None = None
    """Why it cannot come about now: a study that grows may have measured it before."""

    @property
    def training(self) -> str:
        """Names the training whose result is dropped or continued, or is the cell's own."""
        return f"{self.spec.method}-seed-{self.spec.seed}"

    @property
    def builds(self) -> bool:
        """Whether it builds on the result of another training."""
        return self.continued or self.drop is not None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a study of trainings starts from, learns and is measured on.

    Raises:
        DeltaLensError: there is nothing to measure on.
    """

    model: str | Path
    data: str | Path
    eval_data: Sequence[str | Path]
    fields: Mapping[str, str] | None = None
    """What the data files call a field, those that are measured among them."""
    limit: int | None = None
    """Rows taken of the data."""
    choose_on: str | Path | None = None
    """Rows that decide which moment of a training comes out (`train`)."""
    eval_every: int | None = None
    """Steps between measurements on the way; their metrics are called `METRIC@STEP`."""
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not self.eval_data:
            raise DeltaLensError("a sweep needs data to measure on: --eval-data")


Plans = Callable[[Mapping[str, Any]], Sequence[tuple[Setting, Plan]]]
"""From what a study was asked, axes and each method's settings among it, to its cells in the order
of the table: each one's setting, and how its model comes about."""


def check_trainings(
    kind: str,
    spec: TrainingSpec,
    methods: Sequence[str],
    seeds: int,
    swept: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """The methods of a study in the order of its table, each with its own settings (`cells_own`),
    after a look at what they are asked.

    Args:
        kind: of the study.
        spec: the settings of a training.
        methods: that were asked for.
        seeds: how many trainings at each point.
        swept: settings that the study goes through, and what to give it instead.

    Raises:
        DeltaLensError: an unknown method, none, an option that none of them has, or no seed.
    """
    known = STUDIES[kind].methods
    unknown = [method for method in methods if method not in known]
    if unknown or not methods:
        name = unknown[0] if unknown else ""
        raise DeltaLensError(f"method {name!r}: choose from {', '.join(known)}")
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: at least 1")
    if spec.seed:
        raise DeltaLensError(f"seed {spec.seed}: the trainings of a study have seeds from 0 on")
    check_own(methods, spec.given, swept=swept)
    removing = [m for m in methods if "blocks" in (own := options_of(m)) and "threshold" not in own]
    if spec.threshold is not None and removing:
        raise DeltaLensError(
            f"threshold: {', '.join(removing)} would remove a ratio of their own; leave them out"
        )
    return cells_own(spec, axes.in_order(methods, known), swept)


def cells_own(
    spec: TrainingSpec, methods: Sequence[str], swept: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Each method's own settings, as its trainings use them; but for those that a study goes
    through, which its cells name."""
    found = {}
    for method in methods:
        own = spec.of(method).settings() if METHODS[method].options is not None else {}
        found[method] = {name: value for name, value in own.items() if name not in swept}
    return found
