"""Reading and checking the rows of a data file, before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, DeltaLensError, fault_list
from deltalens.io.plain_json import check_names
from deltalens.scoring.row_files import data_name, records
from deltalens.scoring.row_forms import FIELDS, KNOWN_FIELDS, Row, Turns, parse_row

__all__ = ["FIELDS", "DataFile", "Row", "Turns", "read_files", "read_rows"]

_FORMAT = b"deltalens rows 2"
"""Part of the digest. The number changes whenever the same rows would result in other tokens."""


@dataclass(frozen=True)
class DataFile:
    """The rows of one file."""

    name: str
    path: Path
    rows: tuple[Row, ...]
    digest: str
    """SHA-256 of the parts of the rows that are used, independent of field names and compression.
    Other rows, fields or limits result in another digest."""

    @property
    def labeled(self) -> bool:
        """Whether the rows are sentences with labels, for classification or regression."""
        return self.rows[0].label is not None

    @property
    def identity(self) -> list[Any]:
        """What identifies the rows, as JSON values: name, number, digest."""
        return [self.name, len(self.rows), self.digest]


def read_rows(
    path: str | Path, limit: int | None = None, fields: Mapping[str, str] | None = None
) -> DataFile:
    """Read a file of rows.

    A row has the fields `text`; `prompt` and `completion`; `messages`; `prompt`, `chosen` and
    `rejected`; or `label` and one or two sentences, under any of the names that GLUE's tasks have
    for them. Prompts and answers are texts, or lists of messages. The last of `messages` is the
    completion, and the others are the prompt; a `prompt` in addition to them is ignored. If there
    is no prompt in addition to `chosen` and `rejected`, it is what both begin with. With messages,
    a row can have `tools` and `chat_template_kwargs`. A label is the number of a class (an
    integer), its name (a text), or a score (any other number).

    Args:
        path: JSON lines or a JSON array, optionally compressed with gzip; Parquet; or the folder of
            a saved `datasets.Dataset`. All rows must have the same form.
        limit: the number of rows to read, from the first on; None: all.
        fields: the file's names for fields, where they differ: {"prompt": "question"}.

    Returns:
        The rows, with the digest that identifies them.

    Raises:
        DataError: the file cannot be read or is empty, or rows cannot be parsed or lack a field;
            the message lists line and field of the first 20.
        DeltaLensError: `limit` is below 1, or `fields` has an unknown field.
    """
    _check_limit(limit)
    path, fields = Path(path), dict(fields or {})
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise DeltaLensError(
            f"`fields` has an unknown field {unknown[0]!r}: choose from {', '.join(FIELDS)}"
        )
    check_names(data_name(path))
    rows: list[Row] = []
    faults: list[str] = []
    for location, parse in records(path, {*KNOWN_FIELDS, *fields.values()}):
        if limit is not None and len(rows) + len(faults) >= limit:
            break
        try:
            rows.append(parse_row(_renamed(parse(), fields), fields, location))
        except ValueError as error:
            faults.append(f"{location}: {error}")
    if faults:
        count = "1 row" if len(faults) == 1 else f"{len(faults):,} rows"
        raise DataError(fault_list(f"{path}: {count} cannot be used:", faults))
    if not rows:
        raise DataError(f"{path}: no rows")
    if len({row.label is None for row in rows}) > 1:
        raise DataError(f"{path}: some rows are labeled sentences and some are not; split the file")
    if len({len(row.sentences) for row in rows}) > 1:
        raise DataError(f"{path}: some rows have one sentence and some two; split the file")
    if len({row.answered for row in rows}) > 1:
        raise DataError(f"{path}: some rows have a completion and some only a text; split the file")
    if len({row.rejected is None for row in rows}) > 1:
        raise DataError(f"{path}: some rows are preferences and some are not; split the file")
    return DataFile(data_name(path), path, tuple(rows), _digest(rows))


def read_files(
    paths: Iterable[str | Path], limit: int | None = None, fields: Mapping[str, str] | None = None
) -> tuple[DataFile, ...]:
    """Read several files of rows; see `read_rows`.

    Args:
        paths: the files; there may be none.
        limit: the number of rows to read from each file.
        fields: the files' names for fields.

    Returns:
        One `DataFile` per path.

    Raises:
        DataError: see `read_rows`.
        DeltaLensError: see `read_rows`; `limit` is checked even if there is no file.
    """
    _check_limit(limit)
    return tuple(read_rows(path, limit, fields) for path in paths)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise DeltaLensError(f"limit={limit}: must be at least 1 row")


def _digest(rows: Sequence[Row]) -> str:
    sha = hashlib.sha256(_FORMAT)
    for row in rows:
        parts: list[Any] = [row.text, row.prompt, row.completion, row.rejected]
        if row.conversation:
            parts += [row.tools, row.template]
        if row.label is not None:
            parts += [*row.sentences, row.label]
        for part in parts:
            plain = isinstance(part, str)
            text = (part if plain else json.dumps(part, ensure_ascii=False)).encode()
            sha.update(b"%c%d:" % (b"t" if plain else b"j", len(text)))
            sha.update(text)
    return sha.hexdigest()


def _renamed(record: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for name, file_name in fields.items():
        if file_name not in record:
            raise ValueError(f"{file_name!r} is missing, which `fields` names as the {name}")
    return record | {name: record[file_name] for name, file_name in fields.items()}
