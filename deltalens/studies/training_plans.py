"""The specification of a study of trainings: methods with their settings, data, and how the model
of each cell is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import MethodFacts, method_name, package_methods
from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import Setting
from deltalens.scoring.tasks.scoring import StandardTasks
from deltalens.studies import axes
from deltalens.training.methods import Method, labelled, method_class, method_of
from deltalens.training.spec import TrainingSpec

__all__ = [
    "Plan",
    "Plans",
    "PointOf",
    "TrainingData",
    "cell_training",
    "check_trainings",
    "known_methods",
    "method_settings",
    "recorded_labels",
    "with_methods",
]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the model of a cell is made: by a training, a drop, or not at all."""

    spec: TrainingSpec
    """The training."""
    start: str | Path | None = None
    """The checkpoint that the training starts from; None: the study's model."""
    rows: int | None = None
    """Train on this many rows, the first ones; None: on all."""
    drop: str | None = None
    """If set: put this share of the training's smallest deltas back to the study's model (One-off
    Drop)."""
    scope: str = "tensor"
    """What is ranked together by the drop."""
    continued: bool = False
    """If set: train once more, from the result of the same training."""
    checkpoint: str | Path | None = None
    """If set: measure this checkpoint as it is; nothing is trained."""
    as_it_is: bool = False
    """Whether the model is a checkpoint as it is, even if `checkpoint` is not known."""
    rate: float | None = None
    """The learning rate, where the study has a grid of them."""
    unavailable: str | None = None
    """If set: why the model cannot be made in this call. A study that is resumed may contain the
    cell from an earlier call."""

    @property
    def training(self) -> str:
        """Name of the training: of the cell's own, or of the one that it drops or continues. Equal
        for equal trainings of a study only."""
        name = f"{self.spec.method.name}-seed-{self.spec.seed}"
        own = self.spec.settings()
        if own:
            text = json.dumps(own, sort_keys=True)
            name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return name if self.rate is None else f"{name}-rate-{self.rate:g}"

    @property
    def builds(self) -> bool:
        """Whether the model is made from the result of another training."""
        return self.continued or self.drop is not None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The model of a study of trainings, and its data.

    Raises:
        DeltaLensError: there is nothing to evaluate on.
    """

    model: str | Path
    """The checkpoint that trainings start from."""
    data: str | Path
    """File of rows to train on."""
    eval_data: Sequence[str | Path] = ()
    """Files of rows to evaluate on."""
    tasks: StandardTasks | None = None
    """Standard tasks that every model is measured on when it is made."""
    fields: Mapping[str, str] | None = None
    """Names of fields in all data files, where they differ from ours: {"prompt": "question"}."""
    limit: int | None = None
    """Train on this many rows, the first ones; None: on all."""
    choose_on: str | Path | None = None
    """File of rows; the checkpoint with the lowest loss on them is kept (`train`)."""
    eval_every: int | None = None
    """Steps between evaluations during a training; their metrics are called `METRIC@STEP`."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    """Run model code that the checkpoint contains."""

    def __post_init__(self) -> None:
        if not self.eval_data and self.tasks is None:
            raise DeltaLensError(
                "a study of trainings needs data to evaluate on: give eval_data, or tasks"
            )


Plans = Callable[[Mapping[str, Any]], Sequence[tuple[Setting, Plan]]]
"""A study's specification (axes, and each method's settings) -> its cells in the order of the
table: the setting of each, and how its model is made."""
PointOf = Callable[[Setting, Plan], str | None]
"""As `run_cells` takes it, told how the cell's model is made as well."""


_RATES = ("score_learning_rate",)
"""Settings of methods that stand for the learning rate: a grid varies them."""


def with_methods(names: Sequence[str], methods: Sequence[Method]) -> list[Method]:
    """Add the methods that a study always contains.

    Args:
        names: of the methods to add, with default settings.
        methods: the caller's methods; they replace added ones of the same name.

    Returns:
        Every method once, the added ones first.
    """
    first = [
        method
        for name in names
        for method in [each for each in methods if each.name == name] or [method_of(name)]
    ]
    return [*first, *(method for method in methods if method.name not in names)]


def known_methods(kind: str) -> list[str]:
    """List the methods that a kind of study can train or measure.

    Args:
        kind: of the study.

    Returns:
        Names of built-in methods in the order of the study's table, then those of suitable methods
        of installed packages.
    """
    packages = [name for name, facts in package_methods() if _fits(kind, name, facts)]
    return [*STUDIES[kind].methods, *packages]


def _fits(kind: str, name: str, facts: MethodFacts) -> bool:
    """Whether a package's method has what a kind of study varies or measures."""
    if kind == "mask-ratio-sweep":
        return facts.ratio
    if kind == "density-sweep":
        return bool(method_class(name).budget_settings)
    if kind == "mask-sweep":
        return {"scope", "refresh_every"} <= {*method_class(name).own_settings()}
    if kind == "layer-sweep":
        return "blocks" in method_class(name).own_settings()
    return kind != "efficiency" or facts.masks == "gradients"


def check_trainings(
    kind: str,
    spec: TrainingSpec,
    methods: Sequence[Method],
    seeds: int,
    swept: Mapping[str, str],
    learning_rates: Sequence[float] = (),
) -> dict[str, dict[str, Any]]:
    """Check the methods of a study of trainings, and collect their settings.

    Args:
        kind: of the study.
        spec: the settings that all trainings share.
        methods: with their settings, in any order.
        seeds: number of trainings at each point.
        swept: settings that the study itself varies -> the study's argument for each.
        learning_rates: the study's grid, where it has one: it is every method's.

    Returns:
        Label of a method -> its own settings (`method_settings`), in the order of the study's
        table.

    Raises:
        DeltaLensError: there is no method, or one that this study cannot train; a method has a
            setting that the study varies; or `seeds` is below 1.
    """
    if learning_rates:
        swept = {**swept, **dict.fromkeys(_RATES, "learning_rate")}
    known, names = known_methods(kind), [method.name for method in methods]
    unknown = [name for name in names if name not in known]
    if unknown or not methods:
        raise DeltaLensError(
            f"method {unknown[0] if unknown else ''!r}: choose from {', '.join(known)}"
        )
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: must be at least 1")
    if spec.seed:
        raise DeltaLensError(
            f"seed {spec.seed}: the trainings of a study are numbered by seed from 0; set seeds"
        )
    faults = [
        f"{method.name}: {name} is varied by this study; give {argument} instead"
        for method in methods
        for name, argument in swept.items()
        if name in method.changed or name in (method.given or ())
    ]
    if faults:
        raise DeltaLensError("; ".join(faults))
    by_threshold = any(getattr(method, "threshold", None) is not None for method in methods)
    without_threshold = [
        method.name
        for method in methods
        if "blocks" in (own := method.own_settings())
        and "threshold" not in own
        and "mask_ratio" not in {*method.changed, *swept}
    ]
    if by_threshold and without_threshold:
        raise DeltaLensError(
            f"threshold: {', '.join(without_threshold)} cannot use it, and would mask the default "
            "ratio; set the mask_ratio of each, or remove it from the methods"
        )
    return method_settings(spec, methods, swept, known)


def method_settings(
    spec: TrainingSpec,
    methods: Sequence[Method],
    swept: Collection[str] = (),
    order: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Collect the settings that methods do not share, as their trainings use them.

    Args:
        spec: the settings that all trainings share.
        methods: with their settings.
        swept: settings to leave out, because the study varies them.
        order: names of methods, in the order of the result; (): the order of `methods`.

    Returns:
        Label (`labelled`) -> its own settings, as JSON values.
    """
    by_label = labelled(methods)
    return {
        label: {
            setting: value
            for setting, value in spec.of(by_label[label]).settings().items()
            if setting not in swept
        }
        for label in (axes.in_order([*by_label], order) if order else by_label)
    }


def recorded_labels(
    settings: Mapping[str, Mapping[str, Any]],
    methods: Sequence[Method],
    recorded: Mapping[str, Any],
) -> dict[str, Mapping[str, Any]]:
    """Call methods as the study in a folder does, so that it finds their cells.

    A label depends on how many variants of a method a call has; the settings do not. A study that
    began with one variant goes on calling that one by the method's name, and where the folder has
    variants of a method, one that is given alone is another variant.

    Args:
        settings: label -> the method's own settings, of a new call.
        methods: of the new call.
        recorded: label -> settings of the study in the folder; {} if there is none.

    Returns:
        The settings of the new call, with the folder's labels for those that it has.
    """

    given = labelled(methods)

    def label_of(label: str, own: Mapping[str, Any]) -> str:
        held = {n: other for n, other in recorded.items() if method_name(n) == method_name(label)}
        if held.get(label) == own:
            return label
        several = any(name != method_name(name) for name in held)
        otherwise = given[label].variant if several else label
        return next((name for name, other in held.items() if other == own), otherwise)

    return {label_of(label, own): own for label, own in settings.items()}


def cell_training(
    spec: TrainingSpec, label: str, settings: Mapping[str, Any], seed: int
) -> TrainingSpec:
    """Make the specification of a cell's training.

    Args:
        spec: the settings that all trainings share.
        label: of the method; if it has an `as_trained`, that is trained.
        settings: the method's own settings, as the study's records contain them.
        seed: of the training.

    Returns:
        The specification.

    Raises:
        DeltaLensError: the method is not installed.
    """
    name = method_name(label)
    trained = method_class(name).facts.as_trained or name
    return spec.of(method_class(trained).from_record(settings), seed)
