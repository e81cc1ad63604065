"""The documents of our tasks, from local files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, DeltaLensError, fault_list
from deltalens.scoring.row_files import records

__all__ = ["load", "mbpp_examples"]

_TESTS = 3
"""Tests that MBPP's prompt shows."""


def load(
    task: str, local_files: Mapping[str, Sequence[str]] | None = None, **_: Any
) -> dict[str, Any]:
    """Read a task's documents, as the harness's `custom_dataset`.

    Args:
        task: `gsm8k` or `mbpp`.
        local_files: task -> its files: the rows to measure on; then those that few-shot examples
            are taken from, if they are others.

    Returns:
        The splits `test` and `train`, each a `datasets.Dataset`.

    Raises:
        DeltaLensError: there is no file for the task, or a row lacks something.
    """
    from datasets import Dataset

    files = (local_files or {}).get(task)
    if not files:
        raise DeltaLensError(f"task {task!r}: reads a local file; name it as {task}=FILE")
    read = _ROWS[task]
    test, train = (Dataset.from_list(_rows(Path(file), read)) for file in (files[0], files[-1]))
    return {"test": test, "train": train}


def _rows(path: Path, read: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    rows, faults = [], []
    for where, parse in records(path, ()):
        try:
            rows.append(read(parse()))
        except (KeyError, TypeError, ValueError) as error:
            faults.append(f"{where}: {error.args[0]}")
    if faults:
        raise DataError(fault_list(f"{path}: rows that are no documents of the task:", faults))
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows


def _text(row: Any, name: str) -> str:
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {json.dumps(value)[:60]}, and has to be a text")
    return value


def _gsm8k_row(row: Any) -> dict[str, Any]:
    return {name: _text(row, name) for name in ("question", "answer")}


def _mbpp_row(row: Any) -> dict[str, Any]:
    texts = {name: _text(row, name) for name in ("text", "code")}
    tests = row.get("test_list")
    if not isinstance(tests, Sequence) or isinstance(tests, str) or len(tests) < _TESTS:
        raise ValueError(f"'test_list' has to be a list of {_TESTS} tests or more")
    return {**texts, "test_list": [str(test) for test in tests]}


_ROWS: Mapping[str, Callable[[Any], dict[str, Any]]] = {"gsm8k": _gsm8k_row, "mbpp": _mbpp_row}


def mbpp_examples() -> list[dict[str, Any]]:
    """The three examples of MBPP's prompt: its tasks 2 to 4 (google-research, CC BY 4.0), as in the
    harness.

    Returns:
        Documents.
    """
    text = (Path(__file__).parent / "mbpp_examples.json").read_text(encoding="utf-8")
    return [{**example, "is_fewshot": True} for example in json.loads(text)]
