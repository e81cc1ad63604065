"""What the records of each kind of study hold, of all that is read again: by its summary, its
pictures, and the next call of the same study. No torch here.

This is the one place that says so. A folder is checked against it when it is read; code behind
that trusts what it finds. A kind that is not known here is read as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltalens.catalog.methods import OBJECTIVES
from deltalens.catalog.metrics import DIRECTIONS
from deltalens.catalog.studies import STUDIES, study_name
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

__all__ = ["StudyKind", "kind_of"]

Record = Mapping[str, Any]
Rule = Callable[[Record, Record], Iterator[str]]
"""Of what was asked and found: what does not go together, in words."""

_MANY = 100_000
"""More seeds, repeats or blocks than any study has: a loop over so many ends."""
_PLACES = ("origin", "b", "c", "base", "step")
_PLANES = ("random", "line", "checkpoints", "trajectory", "hessian")

_SIZE = Whole(1)
_PLACE = Real(-1e30, 1e30)
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

_ASKED: Mapping[str, Check] = {
    "include": _OPTION,
    "exclude": _OPTION,
    "device": NAME,
    "dtype": NAME,
}
_FACTS: Mapping[str, Check] = {
    "notes": Items(Text()),
    "better": Named(Text(among=DIRECTIONS)),
    "ft": Text(),
    "base": Text(),
    "model": Text(),
}
_OF_METHOD = Fields(
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
    "size": Whole(0, _MANY),
    "group": _GROUP,
    "repeat": COUNT,
    "a": _PLACE,
    "b": _PLACE,
    "mark": NAME,
    "data": NAME,
}
"""A column of a cell's setting means the same in every kind."""


@dataclass(frozen=True)
class StudyKind:
    """The records of a kind of study."""

    name: str
    """In the catalog."""
    spec: Fields = field(default_factory=Fields)
    facts: Fields = field(default_factory=Fields)
    """What is needed of them is there once a cell is."""
    metrics: tuple[str, ...] = ()
    """Those that every cell has."""
    rule: Rule | None = None

    @property
    def columns(self) -> Mapping[str, Check]:
        """Of a cell's setting, in the table's order."""
        return {name: _COLUMNS[name] for name in STUDIES[self.name].columns}


def _spec(needed: Mapping[str, Check], known: Mapping[str, Check]) -> Fields:
    return Fields(needed, {**_ASKED, **known})


def _facts(needed: Mapping[str, Check], known: Mapping[str, Check]) -> Fields:
    return Fields(needed, {**_FACTS, **known})


_TRAINING: Mapping[str, Check] = {
    "methods": _METHODS,
    "seeds": _SEEDS,
    "objective": Text(among=OBJECTIVES),
    "settings": Named(_OF_METHOD),
    "data": _FILE,
    "eval_data": Items(_FILE, 1, 10_000),
    "choose_on": Either((NOTHING, _FILE)),
    "steps": Either((NOTHING, _SIZE)),
    # The first version had one setting for all methods.
    **_OF_METHOD.known,
}


def _trainings(
    name: str, spec: Mapping[str, Check], facts: Mapping[str, Check] | None = None
) -> StudyKind:
    """A study whose cells are trainings."""
    return StudyKind(
        name,
        _spec({}, {**_TRAINING, **spec}),
        _facts({}, {"units": Named(NAME), **(facts or {})}),
    )


def _one_delta(spec: Record, facts: Record) -> Iterator[str]:
    if facts.get("unchanged", 0) > facts.get("entries", 0):
        yield "facts.unchanged is more than facts.entries"


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
    rule=_one_delta,
)


def _some_bins(spec: Record, facts: Record) -> Iterator[str]:
    histograms = facts.get("histograms", {})
    for name, bins in histograms.items():
        places = [place for place, _ in bins]
        if places != sorted({*places}):
            yield f"facts.histograms.{name} is not in ascending order"
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
    rule=_some_bins,
)

_PART = Fields({"entries": COUNT, "squares": Real(0)})


def _some_delta(spec: Record, facts: Record) -> Iterator[str]:
    parts = [*facts.get("blocks", {}).values(), facts.get("outside", {"squares": 0})]
    if facts.get("blocks") and not sum(part["squares"] for part in parts) > 0:
        yield "facts.blocks: the squares of the delta are all 0"


_LAYERS_DROPPED = StudyKind(
    "layer-sweep-drop",
    _spec({"groups": Items(Whole(1, _MANY), 1, _MANY)}, _MEASURED),
    _facts(
        {"blocks": Named(_PART, Text(form=r"\d{1,5}", example="7")), "outside": _PART},
        {"entries": _SIZE, "unchanged": COUNT, "most_cached_bytes": COUNT, **_DELTA},
    ),
    rule=_some_delta,
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

_MARK = Fields(
    {"name": NAME, "role": Text(among=_PLACES), "a": _PLACE, "b": _PLACE, "distance": Real(0, 1e30)}
)
_PLANE = Fields(
    {
        "labels": Items(NAME, 1, 2),
        "marks": Items(_MARK, 1, 100_000),
        "ranges": Items(Row((_PLACE, _PLACE)), 1, 2),
        "terms": Items(Items(Real())),
        "found": Fields(known={"eigenvalues": Items(Real()), "explained": Items(Real())}),
    }
)


def _one_plane(spec: Record, facts: Record) -> Iterator[str]:
    axes, plane = len(spec["grid"]), facts.get("plane")
    if (spec["plane"], axes) in (("line", 2), ("checkpoints", 1)):
        yield f"asked.grid has {axes} numbers for asked.plane {spec['plane']!r}"
    ranges = {"asked.range": spec["range"]}
    if plane is not None:
        ranges["facts.plane.ranges"] = plane["ranges"]
        if len(plane["labels"]) != axes:
            yield f"facts.plane.labels has {len(plane['labels'])} items for {axes} directions"
        roles = [mark["role"] for mark in plane["marks"]]
        if roles.count("origin") != 1 or (spec["plane"] == "line" and roles.count("b") != 1):
            yield f"facts.plane.marks has the roles {', '.join(roles)[:200]}"
        names = [mark["name"] for mark in plane["marks"]]
        if len({*names}) < len(names):
            yield "facts.plane.marks names a model twice"
        if plane["terms"] and len(plane["terms"]) != axes:
            yield f"facts.plane.terms has {len(plane['terms'])} items for {axes} directions"
    for name, ends in ranges.items():
        if ends is not None and (len(ends) != axes or any(low >= high for low, high in ends)):
            yield f"{name} is {ends}, where {axes} ascending pairs should be"


_LANDSCAPE = StudyKind(
    "landscape",
    _spec(
        {
            "plane": Text(among=_PLANES),
            "grid": Items(Whole(2, 10_000), 1, 2),
            "range": Either((NOTHING, Items(Row((_PLACE, _PLACE)), 1, 2))),
        },
        _MEASURED,
    ),
    _facts(
        {"plane": _PLANE, "points": COUNT, "data": Items(NAME, 1)},
        {"models": Items(Text(), 1), "tensors": COUNT, "entries": COUNT},
    ),
    rule=_one_plane,
)

_KINDS: Mapping[str, StudyKind] = {
    kind.name: kind
    for kind in (
        _DROP_STUDY,
        _INSPECTION,
        _trainings("mask-ratio-sweep", {"ratios": Items(_RATE)}),
        _trainings("data-ratio-sweep", {"ratios": Items(_RATE)}),
        _LAYERS_TRAINED,
        _LAYERS_DROPPED,
        _trainings("comparison", {}),
        _EFFICIENCY,
        _LANDSCAPE,
    )
}


def kind_of(spec: Mapping[str, Any]) -> StudyKind | None:
    """What the records of a study hold; None of a kind that is not known."""
    return _KINDS.get(study_name(spec))
