"""Whose numbers a picture shows: the models and the data, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.io.records import (
    find_run,
    is_study,
    is_training,
    load_run,
    load_study,
    load_training,
)

__all__ = ["title_of"]

_MOST = 3
"""Names that a title has room for."""


def title_of(folders: Sequence[Path]) -> str:
    """Name the models and the data that records are of.

    Args:
        folders: of studies, trainings and runs.

    Returns:
        `ft against base, maths_test`; the folder's name where the records have no names; empty
        without a folder. Of several folders the models alone, or else the data: each panel says
        what it is of.
    """
    told = [_told(folder) for folder in folders]
    if len(told) > 1:
        return _some((models or data for models, data in told), "; ")
    return ", ".join(filter(None, told[0])) if told else ""


def _told(folder: Path) -> tuple[str, str]:
    """Models and method, and data."""
    spec: Mapping[str, Any] = {}
    method = ""
    if is_study(folder):
        study = load_study(folder)
        models, spec = _models(study.facts, study.model), study.spec
    elif is_training(folder):
        training = load_training(folder)
        models, spec = _models(training.facts, ""), training.spec
        method = str(spec.get("method") or "")
    else:
        run = load_run(find_run(folder))
        if is_training(run.path.parent):
            return _told(run.path.parent)
        models = _models(run.facts, "")
    named, data = ", ".join(filter(None, (models, method))), _data(spec)
    return (named, data) if named or data else (folder.resolve().name, "")


def _models(facts: Mapping[str, Any], model: str) -> str:
    """The model; of a delta both."""
    if facts.get("ft") and facts.get("base"):
        return f"{_name(facts['ft'])} against {_name(facts['base'])}"
    if model or facts.get("model"):
        return model or _name(facts["model"])
    models = facts.get("models")
    every = models if isinstance(models, list | tuple | Mapping) else ()
    return _some([_name(one) for one in every] if len(every) <= _MOST else [f"{len(every)} models"])


def _name(path: object) -> str:
    return Path(str(path)).name or str(path)


def _data(spec: Mapping[str, Any]) -> str:
    """The data that is trained on, and what is measured on."""
    data, held = (
        found if isinstance(found, list) else []
        for found in (spec.get("data"), spec.get("eval_data"))
    )
    trained = str(data[0]) if data and isinstance(data[0], str) else ""
    measured = [str(one[0]) for one in (held or data) if isinstance(one, list | tuple) and one]
    tasks = [str(one) for one in (spec.get("tasks") or {}).get("tasks", ())]
    return " → ".join(filter(None, (trained, _some([*measured, *tasks]))))


def _some(names: Iterable[str], between: str = ", ") -> str:
    every = [*dict.fromkeys(filter(None, names))]
    more = f"{between}and {len(every) - _MOST} more" if len(every) > _MOST else ""
    return between.join(every[:_MOST]) + more
