"""Data sets of the hub as files of rows that every command reads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, errors_from
from deltalens.io.files import writing_whole
from deltalens.recipes.plan import Plan
from deltalens.recipes.schema import Data, Source

__all__ = ["fetch_rows", "missing_rows"]

_SEED = 0
"""Of the order in which several sources are mixed."""


def missing_rows(plan: Plan) -> dict[str, Path]:
    """Find the data sets that a plan needs and that are not there.

    Args:
        plan: of a recipe.

    Returns:
        Name -> the file that `fetch_rows` would write.

    Raises:
        DataError: a file that was named instead does not exist.
    """
    for name, file in plan.places.data.items():
        if not Path(file).exists():
            raise DataError(f"--rows {name}={file}: no such file")
    wanted = dict(plan.data)
    for data in plan.data.values():
        if data.of and data.of not in plan.places.data:
            wanted.setdefault(data.of, plan.recipe.data[data.of])
    files = {name: plan.places.rows(name) for name in wanted}
    # What is the beginning of another data set comes after it.
    names = sorted(files, key=lambda name: bool(wanted[name].of))
    return {name: files[name] for name in names if not files[name].exists()}


def fetch_rows(name: str, plan: Plan) -> Path:
    """Write a data set's rows as JSON lines, whole or not at all.

    Args:
        name: of the data set in the recipe.
        plan: that needs it.

    Returns:
        The file.

    Raises:
        DataError: it cannot be downloaded, or has no such fields; `--rows NAME=FILE` takes a local
            file instead.
    """
    data, file = plan.recipe.data[name], plan.places.rows(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    if data.of:
        with plan.places.rows(data.of).open("rb") as whole, writing_whole(file) as part:
            part.writelines(itertools.islice(whole, data.first))
        return file
    with errors_from(
        "datasets",
        f"{name}: {', '.join(each.hub for each in data.sources)}: cannot be fetched",
        f"--rows {name}=FILE takes a local file instead",
        DataError,
    ):
        rows = _mixed(name, data)
    with writing_whole(file) as written:
        written.writelines((json.dumps(row) + "\n").encode() for row in rows)
    return file


def _mixed(name: str, data: Data) -> list[Mapping[str, Any]]:
    import datasets

    parts = []
    several_forms = len({frozenset(each.fields) for each in data.sources}) > 1
    for source in data.sources:
        part = datasets.load_dataset(source.hub, source.config or None, split=source.split)
        gone = [field for field in source.fields.values() if field not in part.column_names]
        if gone:
            raise DataError(
                f"{name}: {source.hub} has no field {', '.join(gone)}; it has "
                f"{', '.join(part.column_names)}"
            )
        parts.append([_row(each, source, several_forms) for each in part])
    rows = [row for part in parts for row in part]
    if len(parts) > 1:
        from random import Random

        Random(_SEED).shuffle(rows)
    return rows


def _row(given: Mapping[str, Any], source: Source, as_messages: bool) -> Mapping[str, Any]:
    """A row by our names; as messages where a data set mixes sources of several forms."""
    row = {ours: given[theirs] for ours, theirs in source.fields.items()}
    if as_messages and "prompt" in row:
        return {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
    return row
