"""Rows of a data file, read and checked before any model is loaded."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, several

__all__ = ["DataFile", "Row", "read_rows"]

_FORMS = (("prompt", "completion"), ("messages",), ("text",))
_PREFERENCE = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Row:
    """One example: a text, a prompt with its completion, or a conversation."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[dict[str, str], ...] = ()
    rejected: str | None = None
    """Of a preference, the answer that the completion is preferred to."""

    @property
    def answered(self) -> bool:
        """Whether the row has a target that a model can get exactly right."""
        return self.text is None


@dataclass(frozen=True)
class DataFile:
    """The rows of one file."""

    name: str
    path: Path
    rows: tuple[Row, ...]
    digest: str
    """SHA-256 of the file, and of what it calls its fields where they were named."""

    @property
    def identity(self) -> list[Any]:
        """Which rows these are, as JSON values: name, number, digest."""
        return [self.name, len(self.rows), self.digest]


def read_rows(
    path: str | Path, limit: int | None = None, fields: Mapping[str, str] | None = None
) -> DataFile:
    """Read a file of rows that have `text`, `prompt` and `completion`, `messages`, or `prompt`,
    `chosen` and `rejected`.

    Args:
        path: JSON lines, or Parquet (`.parquet`); all of its rows have the same form.
        limit: take the first so many rows.
        fields: what the file calls a field, where it is another name: {"prompt": "question"}.

    Raises:
        DataError: the file cannot be read, is empty, or rows do not parse or lack a field: file,
            line and field of the first 20.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    rows: list[Row] = []
    faults: list[str] = []
    for number, read in _records(path, raw):
        if limit is not None and len(rows) + len(faults) >= limit:
            break
        try:
            rows.append(_row(_renamed(read(), fields or {})))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        count = "1 row" if len(faults) == 1 else f"{len(faults):,} rows"
        raise DataError(several(f"{path}: {count} cannot be used:", faults))
    if not rows:
        raise DataError(f"{path}: no rows")
    if len({row.answered for row in rows}) > 1:
        raise DataError(f"{path}: some rows have a completion and some only a text; split the file")
    if len({row.rejected is None for row in rows}) > 1:
        raise DataError(f"{path}: some rows are preferences and some are not; split the file")
    digest = hashlib.sha256(raw)
    if fields:
        digest.update(json.dumps(sorted(fields.items())).encode())
    return DataFile(path.stem, path, tuple(rows), digest.hexdigest())


def _records(path: Path, raw: bytes) -> Iterator[tuple[int, Callable[[], Any]]]:
    """The number of each row, and what reads it or raises a ValueError."""
    if path.suffix != ".parquet":
        for number, line in enumerate(raw.split(b"\n"), 1):
            if line.strip():
                yield number, functools.partial(_json, line)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records = pq.read_table(pa.BufferReader(raw)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    for number, record in enumerate(records, 1):
        yield number, functools.partial(dict, record)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error


def _renamed(record: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for name, there in fields.items():
        if there not in record:
            raise ValueError(f"{there!r} is missing, which should hold the {name}")
    return record | {name: record[there] for name, there in fields.items()}


def _row(fields: dict[str, Any]) -> Row:
    if "chosen" in fields or "rejected" in fields:
        _check_texts(fields, _PREFERENCE)
        prompt, chosen, rejected = (fields[name] for name in _PREFERENCE)
        return Row(prompt=prompt, completion=chosen, rejected=rejected)
    form = next((form for form in _FORMS if form[0] in fields), None)
    if form is None:
        raise ValueError(
            "needs 'text', 'prompt' and 'completion', 'messages', or 'prompt', 'chosen' and "
            "'rejected'; has "
            + (", ".join(repr(name[:40]) for name in list(fields)[:5]) or "no field")
        )
    if form == ("messages",):
        return Row(messages=_messages(fields["messages"]))
    _check_texts(fields, form)
    return Row(**{name: fields[name] for name in form})


def _check_texts(fields: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if name not in fields:
            raise ValueError(f"{name!r} is missing")
        if not isinstance(fields[name], str):
            raise ValueError(f"{name!r} is not a text")
        if not fields[name] and name != "prompt":
            raise ValueError(f"{name!r} is empty")
        _check_unicode(name, fields[name])


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is not valid Unicode: {error.reason}") from error


def _messages(found: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(found, list) or len(found) < 2:
        raise ValueError("'messages' is not a list of at least two messages")
    for number, message in enumerate(found, 1):
        for name in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(name), str):
                raise ValueError(f"'messages': message {number} has no text as its {name!r}")
            _check_unicode(name, message[name])
    if found[-1]["role"] != "assistant":
        raise ValueError("'messages' does not end with the assistant's message")
    return tuple({"role": m["role"], "content": m["content"]} for m in found)
