"""What a record was made from: models and data with their fingerprints, versions, the machine as
far as it is recorded. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from deltalens.io.records import RunRecord, StudyRecord, TrainingRecord

__all__ = ["Origin", "conditions_of", "origins_of", "settings_of"]

_ROLES = {
    "ft": "fine-tune",
    "base": "base",
    "model": "model",
    "origin": "origin",
    "models": "model",
    "against": "fine-tune compared with",
    "data": "data",
    "eval_data": "evaluation data",
    "choose_on": "data to choose on",
}
_FINGERPRINT = "weights"
_CONDITIONS = ("device", "dtype")
_KIND = "kind"


class Origin(NamedTuple):
    """A model, or a file of rows."""

    role: str
    """`fine-tune`, `data`, ..."""
    name: str
    """Its path or name, as far as the records have it."""
    rows: int | None
    """Of data; None of a model."""
    fingerprint: str


def origins_of(record: StudyRecord | RunRecord | TrainingRecord) -> list[Origin]:
    """List what a record was made from.

    Args:
        record: of a study, a training or a run.

    Returns:
        Models, then data; [] of a run, which knows only names of tensors.
    """
    if isinstance(record, RunRecord):
        return []
    return [*_models(record.spec, record.facts), *_data(record.spec)]


def conditions_of(record: StudyRecord | RunRecord | TrainingRecord) -> dict[str, str]:
    """Say under which versions and on which kind of machine a record was made.

    Args:
        record: of a study, a training or a run.

    Returns:
        Name -> value, as far as the records have them.
    """
    found = {}
    if isinstance(record, StudyRecord) and record.version:
        found["deltalens"] = record.version
    if not isinstance(record, RunRecord):
        found |= {name: str(record.spec[name]) for name in _CONDITIONS if record.spec.get(name)}
    versions = record.facts.get("versions")
    if isinstance(versions, Mapping):
        found |= {str(name): str(value) for name, value in versions.items()}
    seconds = record.facts.get("seconds")
    if isinstance(record, TrainingRecord) and isinstance(seconds, int | float):
        found["wall time of the steps"] = f"{seconds:,.1f} s"
    return found


def settings_of(record: StudyRecord | RunRecord | TrainingRecord) -> dict[str, str]:
    """Flatten the specification: everything that decided the numbers, but models and data.

    Args:
        record: of a study, a training or a run.

    Returns:
        Name, with dots between levels -> value, as text.
    """
    spec = {
        name: value
        for name, value in record.spec.items()
        if name not in (_KIND, *_CONDITIONS) and not _is_input(value)
    }
    return dict(_flat(spec, ""))


def _models(spec: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Origin]:
    named = facts.get("models")
    names = [str(name) for name in named] if isinstance(named, list) else []
    for key, value in spec.items():
        if _is_model(value):
            name = names[0] if key == "origin" and names else facts.get(key, "")
            yield Origin(_ROLES.get(key, key), str(name), None, str(value[_FINGERPRINT]))
        elif isinstance(value, list) and value and all(map(_is_model, value)):
            own = names[1:] if key == "models" else []
            for at, each in enumerate(value):
                name = own[at] if at < len(own) else ""
                yield Origin(_ROLES.get(key, key), name, None, str(each[_FINGERPRINT]))
        elif isinstance(value, dict) and value and all(map(_is_model, value.values())):
            for name, each in value.items():
                yield Origin(_ROLES.get(key, key), str(name), None, str(each[_FINGERPRINT]))


def _data(spec: Mapping[str, Any]) -> Iterator[Origin]:
    for key in ("data", "eval_data", "choose_on"):
        value = spec.get(key)
        files = [value] if _is_file(value) else value
        for each in files if isinstance(files, list) else ():
            if _is_file(each):
                name, rows, digest = each
                yield Origin(_ROLES[key], str(name), int(rows), str(digest))


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get(_FINGERPRINT), str)


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _is_input(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    several = isinstance(value, dict | list) and bool(value)
    each_is = several and all(_is_model(part) or _is_file(part) for part in parts)
    return _is_model(value) or _is_file(value) or each_is


def _flat(value: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for name, part in value.items():
        key = f"{before}{name}"
        if _is_model(part):
            continue
        if isinstance(part, Mapping) and part:
            yield from _flat(part, f"{key}.")
        elif isinstance(part, list):
            yield key, ", ".join(map(str, part)) or "none"
        elif isinstance(part, float):
            yield key, f"{part:g}"
        elif part not in (None, {}):
            yield key, str(part).lower() if isinstance(part, bool) else str(part)
