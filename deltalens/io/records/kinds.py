"""What the records of each kind of study must contain, as far as anything reads it again: the
summary, the figures, or the next call of the same study. No torch here.

A folder is checked against this when it is read, and code that uses the records relies on it. A
kind that is not listed here is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltalens.catalog.methods import OBJECTIVES
from deltalens.catalog.metrics import DIRECTIONS
from deltalens.catalog.studies import LEARNING_RATE_COLUMN, columns_of, study_name
from deltalens.io.records.schema import (
    COUNT,
    FLAG,
    NAME,
    NOTHING,
    Check,
    Either,
    Fields,
    Items,
    Named,
    Real,
    Row,
    Text,
    Whole,
)

__all__ = ["TASK_COSTS", "StudyKind", "kind_of"]

TASK_COSTS = "standard_tasks"
"""The fact that says what standard tasks took beside the model."""

Record = Mapping[str, Any]
Rule = Callable[[Record, Record], Iterator[str]]
"""Called with specification and facts: yields what is inconsistent in them, in words."""

_MANY = 100_000
"""More seeds, repeats or blocks than any study has, and few enough to loop over."""
_ROLES = ("origin", "b", "c", "base", "step")
_PLANES = ("random", "line", "checkpoints", "trajectory", "hessian")

_SIZE = Whole(1)
_COORDINATE = Real(-1e30, 1e30)
_SEEDS = Whole(1, _MANY)
_SEED = Whole(-(1 << 63))
_SHARE = Real(0, 1)
_RATE = Text(5_000, form=r"\d+(\.\d+)?(/\d*[1-9]\d*)?", example="0.5")
_GROUP = Text(form=r"(\d{1,5}(-\d{1,5})?)?", example="4-7")
_DIGEST = Text(200)
_FILE = Row((NAME, COUNT, _DIGEST))
_FIDELITY = Either((NOTHING, Row((COUNT, COUNT, _SEED))))
_METHODS = Items(NAME, 0, 1_000)
_OPTION = Either((NOTHING, Text(10_000)))

_COMMON_SPEC: Mapping[str, Check] = {
    "include": _OPTION,
    "exclude": _OPTION,
    "device": NAME,
    "dtype": NAME,
}
_COMMON_FACTS: Mapping[str, Check] = {
    "notes": Items(Text()),
    "better": Named(Text(among=DIRECTIONS)),
    "ft": Text(),
    "base": Text(),
    "model": Text(),
    TASK_COSTS: Fields(
        {"requests": COUNT, "building_seconds": Real(0, 1e30)},
        {"cells": Whole(1), "harness_seconds": Real(0, 1e30)},
    ),
}
_METHOD_SETTINGS = Fields(
    known={
        "from": Text(among=("base", "ft")),
        "threshold": Either((NOTHING, Real())),
        "mask_ratio": Either((NOTHING, Text(10_000), Named(Text(5_000)))),
        "blocks": Either((NOTHING, Text(10_000))),
    }
)

_COLUMNS: Mapping[str, Check] = {
    "strategy": NAME,
    "scope": NAME,
    "rate": _SHARE,
    "seed": _SEED,
    "level": NAME,
    "name": NAME,
    "method": NAME,
    "mask_ratio": _SHARE,
    "data_ratio": _SHARE,
    LEARNING_RATE_COLUMN: Real(0),
    "rank": COUNT,
    "trained": COUNT,
    "trained_share": _SHARE,
    "refresh_every": COUNT,
    "size": Whole(0, _MANY),
    "group": _GROUP,
    "repeat": COUNT,
    "a": _COORDINATE,
    "b": _COORDINATE,
    "mark": NAME,
    "data": NAME,
    "salience": NAME,
    "part": Text(among=("budget", "sample", "agreement", "fine-tune")),
    "of": NAME,
    "model": NAME,
    "training": NAME,
    "step": COUNT,
}
"""Columns of a cell's setting; each means the same in all kinds of studies."""


@dataclass(frozen=True)
class StudyKind:
    """What the records of a kind of study must contain."""

    name: str
    """Name in the catalog."""
    spec: Fields = field(default_factory=Fields)
    facts: Fields = field(default_factory=Fields)
    """Required facts must be present once a cell is finished."""
    metrics: tuple[str, ...] = ()
    """Metrics that every cell must have."""
    rule: Rule | None = None

    def columns(self, spec: Record) -> Mapping[str, Check]:
        """List the columns of a cell's setting.

        Args:
            spec: the study's specification, checked.

        Returns:
            Name -> check, in the table's order.
        """
        return {name: _COLUMNS[name] for name in columns_of(spec)}


def _spec(needed: Mapping[str, Check], known: Mapping[str, Check]) -> Fields:
    return Fields(needed, {**_COMMON_SPEC, **known})


def _facts(needed: Mapping[str, Check], known: Mapping[str, Check]) -> Fields:
    return Fields(needed, {**_COMMON_FACTS, **known})


_TRAINING: Mapping[str, Check] = {
    "methods": _METHODS,
    "seeds": _SEEDS,
    "objective": Text(among=OBJECTIVES),
    "settings": Named(_METHOD_SETTINGS),
    "data": _FILE,
    "eval_data": Items(_FILE, 0, 10_000),
    "choose_on": Either((NOTHING, _FILE)),
    "learning_rates": Items(Real(0), 1, 1_000),
    "steps": Either((NOTHING, _SIZE)),
    # Records of the first version have one setting for all methods.
    **_METHOD_SETTINGS.known,
}


def _check_measured(spec: Record, facts: Record) -> Iterator[str]:
    if spec.get("eval_data") == [] and not spec.get("tasks"):
        yield "asked.eval_data is empty, and there are no asked.tasks"


def _trainings(
    name: str, spec: Mapping[str, Check], facts: Mapping[str, Check] | None = None
) -> StudyKind:
    """A study whose cells are trainings."""
    return StudyKind(
        name,
        _spec({}, {**_TRAINING, **spec}),
        _facts({}, {"units": Named(NAME), **(facts or {})}),
        rule=_check_measured,
    )


def _check_counts(spec: Record, facts: Record) -> Iterator[str]:
    if facts.get("unchanged", 0) > facts.get("entries", 0):
        yield "facts.unchanged is greater than facts.entries"


_MEASURED: Mapping[str, Check] = {"data": Items(_FILE), "fidelity": _FIDELITY}
_DELTA: Mapping[str, Check] = {
    "unpaired": Text(),
    "tensors": COUNT,
    "units": COUNT,
    "kept": COUNT,
}

_DROP_STUDY = StudyKind(
    "drop-study",
    _spec(
        {"changed_only": FLAG},
        {"strategies": _METHODS, "rates": Items(_RATE), "seeds": _SEEDS, **_MEASURED},
    ),
    _facts({"entries": _SIZE, "unchanged": COUNT}, _DELTA),
    rule=_check_counts,
)


def _check_histograms(spec: Record, facts: Record) -> Iterator[str]:
    histograms = facts.get("histograms", {})
    for name, bins in histograms.items():
        positions = [position for position, _ in bins]
        if positions != sorted({*positions}):
            yield f"facts.histograms.{name} is not in ascending order"
    if histograms and "per_octave" not in facts:
        yield "facts.per_octave is missing"
    if histograms and not any(histograms.values()):
        yield "facts.histograms has no entry in any bin"


_INSPECTION = StudyKind(
    "inspect",
    _spec({}, {}),
    _facts(
        {},
        {
            "histograms": Named(Items(Row((Whole(-100_000, 100_000), _SIZE)))),
            "per_octave": Whole(1, 1_000),
        },
    ),
    rule=_check_histograms,
)

_PART = Fields({"entries": COUNT, "squares": Real(0)})


def _check_squares(spec: Record, facts: Record) -> Iterator[str]:
    parts = [*facts.get("blocks", {}).values(), facts.get("outside", {"squares": 0})]
    if facts.get("blocks") and not sum(part["squares"] for part in parts) > 0:
        yield "facts.blocks: the squared norms of the delta are all 0"


_LAYERS_DROPPED = StudyKind(
    "layer-sweep-drop",
    _spec({"groups": Items(Whole(1, _MANY), 1, _MANY)}, _MEASURED),
    _facts(
        {"blocks": Named(_PART, Text(form=r"\d{1,5}", example="7")), "outside": _PART},
        {"entries": _SIZE, "unchanged": COUNT, "most_cached_bytes": COUNT, **_DELTA},
    ),
    rule=_check_squares,
)
_LAYERS_TRAINED = _trainings(
    "layer-sweep",
    {"sizes": Items(Whole(1, _MANY), 1, _MANY), "data_ratio": _RATE},
    {"blocks": Whole(1, _MANY)},
)

_EFFICIENCY = StudyKind(
    "efficiency",
    _spec({}, {"methods": _METHODS, "repeats": _SEEDS, "batch_size": _SIZE, "data": _FILE}),
    _facts({"flops_of_a_step": Real(0, 1e30)}, {"parameters": COUNT}),
    metrics=("samples_per_second", "hook_share", "peak_mb"),
)

_SALIENCE = StudyKind(
    "salience",
    _spec(
        {"salience": _METHODS, "density": _RATE, "batch_size": _SIZE, "data": Items(_FILE, 1)},
        {"steps": _SIZE, "scope": NAME, "targets": Text(10_000)},
    ),
    _facts(
        {"entries": _SIZE, "parameters": _SIZE, "batches": COUNT, "examples": COUNT, "rows": COUNT},
        {"model_bytes": COUNT, "seconds_of_pass": Real(0, 1e30), "seconds": Named(Real(0, 1e30))},
    ),
)

_MARK = Fields(
    {
        "name": NAME,
        "role": Text(among=_ROLES),
        "a": _COORDINATE,
        "b": _COORDINATE,
        "distance": Real(0, 1e30),
    }
)
_PLANE = Fields(
    {
        "labels": Items(NAME, 1, 2),
        "marks": Items(_MARK, 1, 100_000),
        "ranges": Items(Row((_COORDINATE, _COORDINATE)), 1, 2),
        "terms": Items(Items(Real())),
        "found": Fields(known={"eigenvalues": Items(Real()), "explained": Items(Real())}),
    }
)


def _check_plane(spec: Record, facts: Record) -> Iterator[str]:
    axes, plane = len(spec["grid"]), facts.get("plane")
    if (spec["plane"], axes) in (("line", 2), ("checkpoints", 1)):
        yield f"asked.grid has {axes} numbers, which does not match asked.plane {spec['plane']!r}"
    ranges = {"asked.range": spec["range"]}
    if plane is not None:
        ranges["facts.plane.ranges"] = plane["ranges"]
        if len(plane["labels"]) != axes:
            yield f"facts.plane.labels has {len(plane['labels'])} items for {axes} directions"
        roles = [mark["role"] for mark in plane["marks"]]
        if roles.count("origin") != 1 or (spec["plane"] == "line" and roles.count("b") != 1):
            yield (
                "facts.plane.marks must have one origin (and for a line one b); it has the roles "
                f"{', '.join(roles)[:200]}"
            )
        names = [mark["name"] for mark in plane["marks"]]
        if len({*names}) < len(names):
            yield "facts.plane.marks names a model twice"
        if plane["terms"] and len(plane["terms"]) != axes:
            yield f"facts.plane.terms has {len(plane['terms'])} items for {axes} directions"
    for name, ends in ranges.items():
        if ends is not None and (len(ends) != axes or any(low >= high for low, high in ends)):
            yield f"{name} is {ends}; expected {axes} ascending pairs"


_LANDSCAPE = StudyKind(
    "landscape",
    _spec(
        {
            "plane": Text(among=_PLANES),
            "grid": Items(Whole(2, 10_000), 1, 2),
            "range": Either((NOTHING, Items(Row((_COORDINATE, _COORDINATE)), 1, 2))),
        },
        _MEASURED,
    ),
    _facts(
        {"plane": _PLANE, "points": COUNT, "data": Items(NAME, 1)},
        {"models": Items(Text(), 1), "tensors": COUNT, "entries": COUNT},
    ),
    rule=_check_plane,
)

_EVALUATED = Fields({"path": Text(), "entries": _SIZE, "dtype": NAME})
_EVALUATE = StudyKind(
    "evaluate",
    _spec({"models": Named(Fields())}, {"data": Items(_FILE)}),
    _facts({"models": Named(_EVALUATED)}, {"notes_of": Named(Items(Text()))}),
)

_KINDS: Mapping[str, StudyKind] = {
    kind.name: kind
    for kind in (
        _DROP_STUDY,
        _INSPECTION,
        _trainings("mask-ratio-sweep", {"ratios": Items(_RATE)}),
        _trainings("data-ratio-sweep", {"ratios": Items(_RATE)}),
        _trainings(
            "density-sweep",
            {"ranks": Items(_SIZE, 1, _MANY), "targets": Text(10_000)},
            {"parameters": _SIZE, "trained_per_rank": _SIZE},
        ),
        _trainings(
            "mask-sweep", {"scopes": Items(NAME, 1, 10), "refreshes": Items(COUNT, 1, _MANY)}
        ),
        _LAYERS_TRAINED,
        _LAYERS_DROPPED,
        _trainings("comparison", {}),
        _EFFICIENCY,
        _SALIENCE,
        _LANDSCAPE,
        _EVALUATE,
    )
}


def kind_of(spec: Mapping[str, Any]) -> StudyKind | None:
    """Look up what the records of a study must contain.

    Args:
        spec: the study's specification.

    Returns:
        The kind of study; None if it is not one of deltalens's own.
    """
    return _KINDS.get(study_name(spec))
