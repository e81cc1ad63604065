"""JSON as deltalens writes it: each name once, valid Unicode, of a depth that nothing chokes on."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import CheckpointError, RecordError
from deltalens.io.files import read_bounded

__all__ = [
    "check_names",
    "encode_finite",
    "is_unicode",
    "name_twice",
    "parse_json",
    "read_settings",
]

_DEEPEST, _SHOWN = 64, 60
_LARGEST = 100_000_000
"""Bytes of settings beside weights: an index of 1,000,000 tensors has fewer."""


def parse_json(where: str | Path, content: bytes | str) -> Any:
    """The value that a record holds.

    Args:
        where: it stands, for the message.
        content: its text, in UTF-8.

    Raises:
        RecordError: no JSON, a name twice in an object, text that is no valid Unicode, or nested
            deeper than any record.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: damaged: not valid JSON: {error}") from error
    # What holds neither cannot be either; journals are long.
    if "\\u" in text or text.count("[") + text.count("{") > _DEEPEST:
        _check(where, value)
    return value


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a JSON file beside a model's weights: its configuration, an index of shards.

    Raises:
        CheckpointError: it cannot be read, is longer than any model's, no valid JSON, or no object.
    """
    content = read_bounded(file, _LARGEST, "model's", CheckpointError)
    try:
        settings = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return settings


def encode_finite(value: Any, other: Callable[[float], Any] = lambda number: None) -> Any:
    """A value for JSON, which has no NaN and no infinities.

    Args:
        value: of numbers, texts, objects and lists.
        other: what becomes of a number that is not finite.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else other(value)
    if isinstance(value, Mapping):
        return {name: encode_finite(item, other) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_finite(item, other) for item in value]
    return value


def check_names(spec: Any) -> None:
    """Refuse to begin what could not be recorded: JSON has no bytes that are not UTF-8, as a file
    system has them in names.

    Args:
        spec: JSON values, with names of files in them.

    Raises:
        RecordError: one is no valid Unicode.
    """
    for text in _texts(spec):
        if not is_unicode(text):
            raise RecordError(
                f"{text[:_SHOWN]!r} is not valid Unicode, and cannot be recorded; rename it"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"{name_twice(pairs)[:_SHOWN]!r} more than once in an object")
    return fields


def name_twice(pairs: list[tuple[str, Any]]) -> str:
    """The first name of an object, as `json` reads it, that stands in it more than once."""
    counts = Counter(name for name, _ in pairs)
    return next(name for name, count in counts.items() if count > 1)


def _check(where: str | Path, value: Any) -> None:
    held, depth = [value], 0
    while held:
        if depth > _DEEPEST:
            raise RecordError(f"{where}: damaged: nested more than {_DEEPEST} levels deep")
        parts: list[Any] = []
        for one in held:
            if isinstance(one, dict):
                parts += [*one, *one.values()]
            elif isinstance(one, list):
                parts += one
            elif isinstance(one, str) and not is_unicode(one):
                raise RecordError(f"{where}: damaged: {one[:_SHOWN]!r} is not valid Unicode")
        held, depth = parts, depth + 1


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
