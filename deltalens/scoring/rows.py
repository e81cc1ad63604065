"""Reading and checking the rows of a data file, before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, DeltaLensError, fault_list
from deltalens.io.plain_json import check_names
from deltalens.scoring.row_files import data_name, records

__all__ = ["FIELDS", "DataFile", "Row", "Turns", "read_files", "read_rows"]

FIELDS = ("text", "prompt", "completion", "messages", "chosen", "rejected")
"""The fields of a row; the argument `fields` says which names a file has for them."""
_TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")
"""Further fields of a conversation, for its chat template."""
_FORMAT = b"deltalens rows 2"
"""Part of the digest. The number changes whenever the same rows would result in other tokens."""

Turns = tuple[dict[str, Any], ...]
"""The messages of a conversation, with all of their keys."""


@dataclass(frozen=True)
class Row:
    """One example: a text; or a prompt and its completion, both as texts or both as messages."""

    text: str | None = None
    prompt: str | Turns | None = None
    completion: str | Turns | None = None
    rejected: str | Turns | None = None
    """In a preference, the answer to which the completion is preferred."""
    tools: tuple[dict[str, Any], ...] | None = None
    """In a conversation, the tools that its chat template describes."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """In a conversation, further arguments of its chat template."""
    location: str = ""
    """Where the row is in its file: `line 3`."""

    @property
    def answered(self) -> bool:
        """Whether the row has an answer, so that exact match is defined."""
        return self.text is None

    @property
    def conversation(self) -> bool:
        """Whether the row consists of messages, which a chat template turns into text."""
        return isinstance(self.completion, tuple)


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
    def identity(self) -> list[Any]:
        """What identifies the rows, as JSON values: name, number, digest."""
        return [self.name, len(self.rows), self.digest]


def read_rows(
    path: str | Path, limit: int | None = None, fields: Mapping[str, str] | None = None
) -> DataFile:
    """Read a file of rows.

    A row has the fields `text`; `prompt` and `completion`; `messages`; or `prompt`, `chosen` and
    `rejected`. Prompts and answers are texts, or lists of messages. The last of `messages` is the
    completion, and the others are the prompt; a `prompt` in addition to them is ignored. If there
    is no prompt in addition to `chosen` and `rejected`, it is what both begin with. With messages,
    a row can have `tools` and `chat_template_kwargs`.

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
    for location, parse in records(path, {*FIELDS, *_TEMPLATE_FIELDS, *fields.values()}):
        if limit is not None and len(rows) + len(faults) >= limit:
            break
        try:
            rows.append(_row(_renamed(parse(), fields), fields, location))
        except ValueError as error:
            faults.append(f"{location}: {error}")
    if faults:
        count = "1 row" if len(faults) == 1 else f"{len(faults):,} rows"
        raise DataError(fault_list(f"{path}: {count} cannot be used:", faults))
    if not rows:
        raise DataError(f"{path}: no rows")
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


def _row(record: dict[str, Any], fields: Mapping[str, str], location: str) -> Row:
    form = _form(record, fields)
    if form == "text":
        return Row(text=_text(record, "text"), location=location)
    if form == "messages":
        turns = _turns(record["messages"], "messages", 2)
        return _conversation(record, location, "messages", prompt=turns[:-1], completion=turns[-1:])
    if form == "preference":
        return _preference(record, location)
    _check_present(record, ("prompt", "completion"))
    if isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        prompt, answer = (_turns(record[name], name) for name in ("prompt", "completion"))
        return _conversation(record, location, "completion", prompt=prompt, completion=answer)
    return Row(
        prompt=_text(record, "prompt"), completion=_text(record, "completion"), location=location
    )


def _form(record: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    """Which fields are used, if a row has more than it needs: first those that the caller named,
    then a preference, an answer to a prompt, messages, or a text."""
    for name, form in (("messages", "messages"), ("text", "text"), ("completion", "completion")):
        if name in fields:
            return form
    if "chosen" in record or "rejected" in record:
        return "preference"
    if "prompt" in fields:
        return "completion"
    if "prompt" in record and ("completion" in record or "messages" not in record):
        return "completion"
    for name in ("messages", "text"):
        if name in record:
            return name
    raise ValueError(
        "needs 'text', 'prompt' and 'completion', 'messages', or 'prompt', 'chosen' and "
        "'rejected'; has " + (", ".join(repr(name[:40]) for name in list(record)[:5]) or "no field")
    )


def _preference(record: dict[str, Any], location: str) -> Row:
    """A preference. Its prompt is stored with the answers, or else it is what both begin with. (A
    prompt that is a text is ignored if the answers are messages: their first one repeats it.)"""
    _check_present(record, ("chosen", "rejected"))
    chosen, rejected = record["chosen"], record["rejected"]
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        answers = {name: _text(record, name) for name in ("chosen", "rejected")}
        start = 0
        if "prompt" not in record:
            start = _shared_length(answers["chosen"], answers["rejected"])
        prompt = _text(record, "prompt") if "prompt" in record else answers["chosen"][:start]
        rest = {name: answer[start:] for name, answer in answers.items()}
        _check_answers(rest)
        return Row(
            prompt=prompt, completion=rest["chosen"], rejected=rest["rejected"], location=location
        )
    turns = {name: _turns(record[name], name) for name in ("chosen", "rejected")}
    if isinstance(record.get("prompt"), list):
        prompt_turns, start = _turns(record["prompt"], "prompt"), 0
    else:
        start = _shared_length(turns["chosen"], turns["rejected"])
        prompt_turns = turns["chosen"][:start]
        if not prompt_turns:
            raise ValueError("'chosen' and 'rejected' do not begin with the same message")
    rest_turns = {name: answer[start:] for name, answer in turns.items()}
    _check_answers(rest_turns)
    return _conversation(
        record,
        location,
        "chosen",
        prompt=prompt_turns,
        completion=rest_turns["chosen"],
        rejected=rest_turns["rejected"],
    )


def _shared_length(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """The length of the prompt that two answers begin with, by trl's rule: up to where they first
    differ (in texts, without a space before that), but at most all except the last part."""
    shorter = min(len(chosen), len(rejected))
    for index in range(shorter):
        if chosen[index] != rejected[index]:
            return index - 1 if index and chosen[index - 1] == " " else index
    return shorter - 1


def _check_answers(answers: Mapping[str, Sequence[Any]]) -> None:
    for name, answer in answers.items():
        if not answer:
            raise ValueError(f"{name!r} is empty after the prompt that both answers begin with")


def _conversation(
    record: Mapping[str, Any],
    location: str,
    completion_field: str,
    *,
    prompt: Turns,
    completion: Turns,
    rejected: Turns | None = None,
) -> Row:
    """A row of messages; `completion_field` is the field of the completion, for messages."""
    for name, answer in ((completion_field, completion), ("rejected", rejected)):
        if answer is not None and answer[-1]["role"] != "assistant":
            raise ValueError(f"{name!r} does not end with the assistant's message")
    tools, template = record.get("tools"), record.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'tools' is not valid JSON: {error}") from error
    objects = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    if tools is not None and not objects:
        raise ValueError("'tools' is not a list of objects")
    if template is not None and not isinstance(template, dict):
        raise ValueError("'chat_template_kwargs' is not an object")
    _check_json("tools", tools)
    _check_json("chat_template_kwargs", template)
    return Row(
        prompt=prompt,
        completion=completion,
        rejected=rejected,
        tools=None if tools is None else tuple(tools),
        template=template or {},
        location=location,
    )


def _check_present(record: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if name not in record:
            raise ValueError(f"{name!r} is missing")


def _text(record: Mapping[str, Any], name: str) -> str:
    text = record[name]
    if not isinstance(text, str):
        raise ValueError(f"{name!r} is not a text")
    if not text and name != "prompt":
        raise ValueError(f"{name!r} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is not valid Unicode: {error.reason}") from error
    return text


def _turns(messages: Any, name: str, least: int = 1) -> Turns:
    """Checked messages. Further keys are kept: a chat template may use them."""
    if not isinstance(messages, list) or len(messages) < least:
        count = {1: "one message", 2: "two messages"}[least]
        raise ValueError(f"{name!r} is not a list of at least {count}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{name!r}: the 'role' of message {number} is not a text")
        content = message.get("content")
        further = any(value for key, value in message.items() if key not in ("role", "content"))
        parts = isinstance(content, list) and all(map(_is_text_part, content))
        if isinstance(content, list) and not parts:
            raise ValueError(f"{name!r}: message {number} has parts that are not text")
        if not (isinstance(content, str) or parts or (content is None and further)):
            raise ValueError(f"{name!r}: the 'content' of message {number} is not a text")
    _check_json(name, messages)
    return tuple(messages)


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _check_json(name: str, value: Any) -> None:
    """Refuse values that JSON cannot represent, which the digest and templates need."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is not valid Unicode: {error.reason}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} cannot be written as JSON: {error}") from error
