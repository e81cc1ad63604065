"""The forms that a row can have, and how each is read from the record of a file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FIELDS", "KNOWN_FIELDS", "Row", "Turns", "parse_row"]

FIELDS = (
    *("text", "prompt", "completion", "messages", "chosen", "rejected"),
    *("sentence1", "sentence2", "label"),
)
"""The fields of a row; the argument `fields` says which names a file has for them."""
_TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")
"""Further fields of a conversation, for its chat template."""
_SENTENCES = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence")),
    *(("question1", "question2"), ("sentence1",), ("sentence",)),
)
"""What GLUE's tasks call the sentences of a row; of several the first that a row has counts."""
_LARGEST_LABEL = 1e30
"""In size; what is greater is no score, and has no place in fp32."""
KNOWN_FIELDS = frozenset((*FIELDS, *_TEMPLATE_FIELDS, *itertools.chain(*_SENTENCES)))
"""Every name of a field that a row is read from."""

Turns = tuple[dict[str, Any], ...]
"""The messages of a conversation, with all of their keys."""


@dataclass(frozen=True)
class Row:
    """One example: a text; a prompt and its completion, both as texts or both as messages; or one
    or two sentences with their label."""

    text: str | None = None
    prompt: str | Turns | None = None
    completion: str | Turns | None = None
    rejected: str | Turns | None = None
    """In a preference, the answer to which the completion is preferred."""
    tools: tuple[dict[str, Any], ...] | None = None
    """In a conversation, the tools that its chat template describes."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """In a conversation, further arguments of its chat template."""
    sentences: tuple[str, ...] = ()
    """What the label is of: one sentence or two."""
    label: int | float | str | None = None
    """The number or name of a class, or a score."""
    location: str = ""
    """Where the row is in its file: `line 3`."""

    @property
    def answered(self) -> bool:
        """Whether the row has an answer, so that exact match is defined."""
        return self.completion is not None

    @property
    def conversation(self) -> bool:
        """Whether the row consists of messages, which a chat template turns into text."""
        return isinstance(self.completion, tuple)


def parse_row(record: dict[str, Any], fields: Mapping[str, str], location: str) -> Row:
    """Read a row from the record of a file.

    Args:
        record: the record's fields, under our names for them as well.
        fields: our names of the fields that the caller named; they decide the form, if a record
            has more than it needs.
        location: where the record is in its file.

    Returns:
        The row.

    Raises:
        ValueError: a field is missing, or is not what it should be.
    """
    form = _form(record, fields)
    if form == "text":
        return Row(text=_text(record, "text"), location=location)
    if form == "messages":
        turns = _turns(record["messages"], "messages", 2)
        return _conversation(record, location, "messages", prompt=turns[:-1], completion=turns[-1:])
    if form == "preference":
        return _preference(record, location)
    if form == "label":
        return _labeled(record, fields, location)
    _check_present(record, ("prompt", "completion"))
    if isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        prompt, answer = (_turns(record[name], name) for name in ("prompt", "completion"))
        return _conversation(record, location, "completion", prompt=prompt, completion=answer)
    return Row(
        prompt=_text(record, "prompt"), completion=_text(record, "completion"), location=location
    )


def _form(record: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    """Which fields are used, if a row has more than it needs: first those that the caller named,
    then a preference, an answer to a prompt, messages, a text, or sentences with a label."""
    for name in ("messages", "text", "completion", "label"):
        if name in fields:
            return name
    if "sentence1" in fields or "sentence2" in fields:
        return "label"
    if "chosen" in record or "rejected" in record:
        return "preference"
    if "prompt" in fields:
        return "completion"
    if "prompt" in record and ("completion" in record or "messages" not in record):
        return "completion"
    for name in ("messages", "text"):
        if name in record:
            return name
    if any(record.keys() >= {*names} for names in _SENTENCES):
        return "label"
    raise ValueError(
        "needs 'text', 'prompt' and 'completion', 'messages', 'prompt', 'chosen' and 'rejected', "
        "or 'sentence1', 'sentence2' and 'label'; has "
        + (", ".join(repr(name[:40]) for name in list(record)[:5]) or "no field")
    )


def _labeled(record: dict[str, Any], fields: Mapping[str, str], location: str) -> Row:
    """Sentences with their label. If the caller named a sentence's field, there are no others."""
    choices: Sequence[tuple[str, ...]] = _SENTENCES
    if "sentence1" in fields or "sentence2" in fields:
        choices = (("sentence1", "sentence2"), ("sentence1",))
    names = next((names for names in choices if record.keys() >= {*names}), None)
    if names is None:
        raise ValueError(
            "needs its sentences as "
            + ", ".join(" and ".join(map(repr, names)) for names in choices)
        )
    _check_present(record, ("label",))
    label = record["label"]
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        raise ValueError("'label' is neither a number nor a text")
    if isinstance(label, str):
        label = _text(record, "label")
    elif abs(label) > _LARGEST_LABEL or label != label:
        raise ValueError(f"'label' is no number that could be learned: {str(label)[:40]}")
    sentences = tuple(_text(record, name) for name in names)
    return Row(sentences=sentences, label=label, location=location)


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
