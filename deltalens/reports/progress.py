"""Whether a study is finished: which points of its specification have no cell yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deltalens.catalog.methods import facts_of, has_ratio, method_name
from deltalens.catalog.studies import study_name
from deltalens.io.records import StudyRecord

__all__ = ["unfinished"]

Point = tuple[Any, ...]
_POINTS_OF: Mapping[str, tuple[str, ...]] = {
    "drop-study": ("strategy", "rate"),
    "mask-ratio-sweep": ("method", "mask_ratio"),
    "data-ratio-sweep": ("method", "data_ratio"),
    "layer-sweep": ("method", "group"),
    "layer-sweep-drop": ("method", "group"),
    "comparison": ("method",),
    "density-sweep": ("method", "rank"),
    "mask-sweep": ("scope", "refresh_every"),
    "efficiency": ("method", "repeat"),
    "evaluate": ("model",),
    "salience": ("salience",),
}
"""Kind -> the columns that tell its points apart; seeds are looked at on their own."""


def unfinished(record: StudyRecord) -> str:
    """Say how much of a study is not measured.

    Args:
        record: of a study of any kind.

    Returns:
        A sentence; empty if every point that the specification names has a cell, or if that cannot
        be told, as of a kind of study that a package adds.
    """
    kind = study_name(record.spec)
    if kind == "landscape":
        points = record.cells.drop_duplicates(["a", "b", "mark"])
        return _said(len(points), int(record.facts.get("points", 0)), "")
    columns = _POINTS_OF.get(kind)
    if columns is None:
        return ""
    # Names come as text, numbers as numbers, so points compare as they are.
    done = {tuple(row) for row in record.cells[[*columns]].itertuples(index=False, name=None)}
    expected = [*dict.fromkeys(_expected(kind, record))]
    missing = [point for point in expected if point not in done]
    if missing:
        first = ", ".join(
            f"{column.replace('_', ' ')} {value}"
            for column, value in zip(columns, missing[0], strict=True)
        )
        return _said(len(expected) - len(missing), len(expected), f"; the first missing is {first}")
    return _fewer_seeds(record)


def _said(done: int, wanted: int, more: str) -> str:
    if done >= wanted:
        return ""
    return f"not finished: {done:,} of {wanted:,} points are measured{more}"


def _fewer_seeds(record: StudyRecord) -> str:
    seeds = record.spec.get("seeds", 1)
    if "seed" not in record.cells or not _is_random(record):
        return ""
    done = record.cells["seed"].nunique()
    return f"not finished: {done:,} of {seeds:,} seeds are measured" if done < seeds else ""


def _is_random(record: StudyRecord) -> bool:
    spec = record.spec
    if "strategies" in spec:
        inner = any(0 < _rate(rate) < 1 for rate in spec["rates"])
        return "random" in spec["strategies"] and inner
    facts = [facts_of(method_name(name)) for name in spec.get("methods", ())]
    return any(each is None or each.random for each in facts)


def _expected(kind: str, record: StudyRecord) -> Iterator[Point]:
    spec, facts = record.spec, record.facts
    methods = [str(name) for name in spec.get("methods", ())]
    if kind == "drop-study":
        rates = [_rate(rate) for rate in spec.get("rates", ())]
        yield from ((name, rate) for name in spec.get("strategies", ()) for rate in rates)
    elif kind == "mask-ratio-sweep":
        ratios = [_rate(ratio) for ratio in spec.get("ratios", ())]
        for name in methods:
            yield from ((name, ratio) for ratio in (ratios if has_ratio(name) else [0.0]))
    elif kind == "data-ratio-sweep":
        ratios = [_rate(ratio) for ratio in spec.get("ratios", ())]
        yield from ((name, ratio) for name in _trained(methods) for ratio in ratios)
    elif kind == "density-sweep":
        yield from ((name, rank) for name in _trained(methods) for rank in spec.get("ranks", ()))
    elif kind == "layer-sweep":
        groups = [*_groups(range(int(facts.get("blocks", 0))), spec.get("sizes", ()))]
        yield from ((name, group) for name in methods if has_ratio(name) for group in groups)
    elif kind == "layer-sweep-drop":
        groups = [*_groups(range(len(facts.get("blocks", ()))), spec.get("groups", ()))]
        yield from ((name, "") for name in ("ft", "base"))
        yield from ((name, group) for name in ("drop", "keep") for group in groups)
    elif kind == "mask-sweep":
        scopes, refreshes = spec.get("scopes", ()), spec.get("refreshes", ())
        yield from ((scope, steps) for scope in scopes for steps in refreshes)
    elif kind == "efficiency":
        yield from ((name, at) for name in methods for at in range(spec.get("repeats", 1)))
    else:
        named: Iterable[str] = spec.get("models", ()) if kind == "evaluate" else methods
        yield from ((name,) for name in spec.get("salience", named))


def _trained(methods: Iterable[str]) -> list[str]:
    facts = {name: facts_of(method_name(name)) for name in methods}
    return [name for name, each in facts.items() if each is None or not each.as_it_is]


def _groups(blocks: range, sizes: Iterable[int]) -> Iterator[str]:
    for size in sizes:
        for start in blocks[::size]:
            last = blocks[start : start + size][-1]
            yield f"{start}-{last}" if last > start else str(start)


def _rate(rate: Any) -> float:
    whole, _, parts = str(rate).partition("/")
    return float(whole) / float(parts or 1)
