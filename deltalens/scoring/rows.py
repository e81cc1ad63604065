"""Rows of a data file, read and checked before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, DeltaLensError, fault_list
from deltalens.io.plain_json import check_names
from deltalens.scoring.row_files import name_of, records

__all__ = ["FIELDS", "DataFile", "Row", "Turns", "read_files", "read_rows"]

FIELDS = ("text", "prompt", "completion", "messages", "chosen", "rejected")
"""What a row can hold; `fields` says what a file calls them."""
_BESIDE = ("tools", "chat_template_kwargs")
"""What a conversation can have beside it, for its template."""
_FORMAT = b"deltalens rows 2"
"""Of the digest: another number where the same rows come to other tokens than before."""

Turns = tuple[dict[str, Any], ...]
"""Messages of a conversation, with all that their row says of them."""


@dataclass(frozen=True)
class Row:
    """One example: a text; or a prompt and its completion, both texts or both messages."""

    text: str | None = None
    prompt: str | Turns | None = None
    completion: str | Turns | None = None
    rejected: str | Turns | None = None
    """Of a preference, the answer that the completion is preferred to."""
    tools: tuple[dict[str, Any], ...] | None = None
    """Of a conversation: what its template is told of tools."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Of a conversation: further arguments of its template."""
    place: str = ""
    """Where it stands in its file: `line 3`."""

    @property
    def answered(self) -> bool:
        """Whether the row has a target that a model can get exactly right."""
        return self.text is None

    @property
    def conversation(self) -> bool:
        """Whether it consists of messages, which a chat template writes out."""
        return isinstance(self.completion, tuple)


@dataclass(frozen=True)
class DataFile:
    """The rows of one file."""

    name: str
    path: Path
    rows: tuple[Row, ...]
    digest: str
    """SHA-256 of the rows: of what is used of them, by our names, not of the file's bytes. Other
    fields, another limit, or other rows make another digest; packing does not."""

    @property
    def identity(self) -> list[Any]:
        """Which rows these are, as JSON values: name, number, digest."""
        return [self.name, len(self.rows), self.digest]


def read_rows(
    path: str | Path, limit: int | None = None, fields: Mapping[str, str] | None = None
) -> DataFile:
    """Read a file of rows that have `text`; `prompt` and `completion`; `messages`; or `prompt`,
    `chosen` and `rejected`.

    Prompts and answers are texts, or lists of messages. Of `messages` the last one is the
    completion and the others are the prompt; a `prompt` beside them is not used. Without a prompt,
    `chosen` and `rejected` begin with it. Beside messages can stand `tools` and
    `chat_template_kwargs`.

    Args:
        path: JSON lines or a JSON array, plain or packed with gzip; Parquet; or the folder of a
            saved `datasets.Dataset`. All of its rows have the same form.
        limit: take the first so many rows.
        fields: what the file calls a field, where it is another name: {"prompt": "question"}.

    Raises:
        DataError: the file cannot be read, is empty, or rows do not parse or lack a field: file,
            line and field of the first 20.
        DeltaLensError: the limit is below 1, or `fields` names what a row cannot hold.
    """
    _check_limit(limit)
    path, fields = Path(path), dict(fields or {})
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise DeltaLensError(f"field {unknown[0]!r}: choose from {', '.join(FIELDS)}")
    check_names(name_of(path))
    rows: list[Row] = []
    faults: list[str] = []
    for place, read in records(path, {*FIELDS, *_BESIDE, *fields.values()}):
        if limit is not None and len(rows) + len(faults) >= limit:
            break
        try:
            rows.append(_row(_renamed(read(), fields), fields, place))
        except ValueError as error:
            faults.append(f"{place}: {error}")
    if faults:
        count = "1 row" if len(faults) == 1 else f"{len(faults):,} rows"
        raise DataError(fault_list(f"{path}: {count} cannot be used:", faults))
    if not rows:
        raise DataError(f"{path}: no rows")
    if len({row.answered for row in rows}) > 1:
        raise DataError(f"{path}: some rows have a completion and some only a text; split the file")
    if len({row.rejected is None for row in rows}) > 1:
        raise DataError(f"{path}: some rows are preferences and some are not; split the file")
    return DataFile(name_of(path), path, tuple(rows), _digest(rows))


def read_files(
    paths: Iterable[str | Path], limit: int | None = None, fields: Mapping[str, str] | None = None
) -> tuple[DataFile, ...]:
    """Several files of rows, or none (`read_rows`).

    Raises:
        DataError, DeltaLensError: as of `read_rows`; of the limit even without a file.
    """
    _check_limit(limit)
    return tuple(read_rows(path, limit, fields) for path in paths)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise DeltaLensError(f"limit {limit}: at least 1 row")


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
    for name, there in fields.items():
        if there not in record:
            raise ValueError(f"{there!r} is missing, which should hold the {name}")
    return record | {name: record[there] for name, there in fields.items()}


def _row(record: dict[str, Any], named: Mapping[str, str], place: str) -> Row:
    form = _form(record, named)
    if form == "text":
        return Row(text=_text(record, "text"), place=place)
    if form == "messages":
        turns = _turns(record["messages"], "messages", 2)
        return _conversation(record, place, "messages", prompt=turns[:-1], completion=turns[-1:])
    if form == "preference":
        return _preference(record, place)
    _check_there(record, ("prompt", "completion"))
    if isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        prompt, answer = (_turns(record[name], name) for name in ("prompt", "completion"))
        return _conversation(record, place, "completion", prompt=prompt, completion=answer)
    return Row(prompt=_text(record, "prompt"), completion=_text(record, "completion"), place=place)


def _form(record: Mapping[str, Any], named: Mapping[str, str]) -> str:
    """Which fields count where a row has more than it needs: those that the caller named, then
    preferences, then an answer to a prompt, then messages, then a text."""
    for name, form in (("messages", "messages"), ("text", "text"), ("completion", "completion")):
        if name in named:
            return form
    if "chosen" in record or "rejected" in record:
        return "preference"
    if "prompt" in named:
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


def _preference(record: dict[str, Any], place: str) -> Row:
    """With its prompt beside the answers; or without, where both begin with it. (A prompt that is a
    text, beside answers that are messages, is what their first message says once more.)"""
    _check_there(record, ("chosen", "rejected"))
    chosen, rejected = record["chosen"], record["rejected"]
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        answers = {name: _text(record, name) for name in ("chosen", "rejected")}
        start = 0
        if "prompt" not in record:
            start = _common(answers["chosen"], answers["rejected"])
        prompt = _text(record, "prompt") if "prompt" in record else answers["chosen"][:start]
        left = {name: answer[start:] for name, answer in answers.items()}
        _check_left(left)
        return Row(prompt=prompt, completion=left["chosen"], rejected=left["rejected"], place=place)
    turns = {name: _turns(record[name], name) for name in ("chosen", "rejected")}
    if isinstance(record.get("prompt"), list):
        before, start = _turns(record["prompt"], "prompt"), 0
    else:
        start = _common(turns["chosen"], turns["rejected"])
        before = turns["chosen"][:start]
        if not before:
            raise ValueError("'chosen' and 'rejected' do not begin with the same message")
    left_turns = {name: answer[start:] for name, answer in turns.items()}
    _check_left(left_turns)
    return _conversation(
        record,
        place,
        "chosen",
        prompt=before,
        completion=left_turns["chosen"],
        rejected=left_turns["rejected"],
    )


def _common(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How much of both is the prompt: up to where they first differ, and for texts without the
    space before that; at most all but the last part (as trl has it)."""
    shorter = min(len(chosen), len(rejected))
    for place in range(shorter):
        if chosen[place] != rejected[place]:
            return place - 1 if place and chosen[place - 1] == " " else place
    return shorter - 1


def _check_left(answers: Mapping[str, Sequence[Any]]) -> None:
    for name, answer in answers.items():
        if not answer:
            raise ValueError(f"{name!r} is empty behind what both answers begin with")


def _conversation(
    record: Mapping[str, Any],
    place: str,
    called: str,
    *,
    prompt: Turns,
    completion: Turns,
    rejected: Turns | None = None,
) -> Row:
    """A row of messages, whose completion its file calls so."""
    for name, answer in ((called, completion), ("rejected", rejected)):
        if answer is not None and answer[-1]["role"] != "assistant":
            raise ValueError(f"{name!r} does not end with the assistant's message")
    tools, template = record.get("tools"), record.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'tools' is no valid JSON: {error}") from error
    objects = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    if tools is not None and not objects:
        raise ValueError("'tools' is no list of objects")
    if template is not None and not isinstance(template, dict):
        raise ValueError("'chat_template_kwargs' is no object")
    _check_json("tools", tools)
    _check_json("chat_template_kwargs", template)
    return Row(
        prompt=prompt,
        completion=completion,
        rejected=rejected,
        tools=None if tools is None else tuple(tools),
        template=template or {},
        place=place,
    )


def _check_there(record: Mapping[str, Any], names: Sequence[str]) -> None:
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


def _turns(found: Any, name: str, least: int = 1) -> Turns:
    """Messages, whole: what a template makes of further keys is its own matter."""
    if not isinstance(found, list) or len(found) < least:
        count = {1: "one message", 2: "two messages"}[least]
        raise ValueError(f"{name!r} is not a list of at least {count}")
    for number, message in enumerate(found, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{name!r}: message {number} has no text as its 'role'")
        content = message.get("content")
        more = any(value for key, value in message.items() if key not in ("role", "content"))
        parts = isinstance(content, list) and all(map(_is_text_part, content))
        if isinstance(content, list) and not parts:
            raise ValueError(f"{name!r}: message {number} has parts that are no text")
        if not (isinstance(content, str) or parts or (content is None and more)):
            raise ValueError(f"{name!r}: message {number} has no text as its 'content'")
    _check_json(name, found)
    return tuple(found)


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _check_json(name: str, found: Any) -> None:
    """Templates, and the digest, take what JSON can say."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is not valid Unicode: {error.reason}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} holds what JSON cannot say: {error}") from error
