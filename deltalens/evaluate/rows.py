"""Rows of a data file, read and checked before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, several

__all__ = ["DataFile", "Row", "read_rows"]

_FORMS = (("prompt", "completion"), ("messages",), ("text",))


@dataclass(frozen=True)
class Row:
    """One example: a text, a prompt with its completion, or a conversation."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[dict[str, str], ...] = ()

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
    """SHA-256 of the file."""


def read_rows(path: str | Path, limit: int | None = None) -> DataFile:
    """Read a JSON-lines file whose rows have `text`, `prompt` and `completion`, or `messages`.

    Args:
        path: the file; all of its rows have the same form.
        limit: take the first so many rows.

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
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        if limit is not None and len(rows) + len(faults) >= limit:
            break
        try:
            rows.append(_row(line))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        count = "1 row" if len(faults) == 1 else f"{len(faults):,} rows"
        raise DataError(several(f"{path}: {count} cannot be used:", faults))
    if not rows:
        raise DataError(f"{path}: no rows")
    if len({row.answered for row in rows}) > 1:
        raise DataError(f"{path}: some rows have a completion and some only a text; split the file")
    return DataFile(path.stem, path, tuple(rows), hashlib.sha256(raw).hexdigest())


def _row(line: bytes) -> Row:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    form = next((form for form in _FORMS if form[0] in fields), None)
    if form is None:
        raise ValueError(
            "needs 'text', 'prompt' and 'completion', or 'messages'; has "
            + (", ".join(repr(name[:40]) for name in list(fields)[:5]) or "no field")
        )
    if form == ("messages",):
        return Row(messages=_messages(fields["messages"]))
    for name in form:
        if name not in fields:
            raise ValueError(f"{name!r} is missing")
        if not isinstance(fields[name], str):
            raise ValueError(f"{name!r} is not a text")
        if not fields[name] and name != "prompt":
            raise ValueError(f"{name!r} is empty")
        _check_unicode(name, fields[name])
    return Row(**{name: fields[name] for name in form})


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
