"""Strict JSON: each name once in an object, valid Unicode, and limited depth."""

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
    "parse_json",
    "read_settings",
    "repeated_name",
]

_DEEPEST, _SHOWN = 64, 60
_LARGEST = 100_000_000
"""Bytes in a file of settings beside weights: an index of 1,000,000 tensors is smaller."""


def parse_json(where: str | Path, content: bytes | str) -> Any:
    """Parse a record.

    Args:
        where: the file and line that the record comes from, for messages.
        content: its text, in UTF-8 if bytes.

    Returns:
        The value.

    Raises:
        RecordError: it is not JSON, repeats a name in an object, holds invalid Unicode, or is
            nested deeper than any record.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: damaged: not valid JSON: {error}") from error
    # Without escapes and so many brackets, it can be neither invalid Unicode nor too deep. This
    # saves time: journals are long.
    if "\\u" in text or text.count("[") + text.count("{") > _DEEPEST:
        _check(where, value)
    return value


def read_settings(file: Path) -> dict[str, Any]:
    """Read a JSON file that is stored beside a model's weights: a configuration, or a shard index.

    Args:
        file: the path.

    Returns:
        The settings.

    Raises:
        CheckpointError: the file cannot be read, is implausibly large, or is not a JSON object.
    """
    content = read_bounded(file, _LARGEST, "a model's settings", CheckpointError)
    try:
        settings = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return settings


def encode_finite(value: Any, other: Callable[[float], Any] = lambda number: None) -> Any:
    """Replace numbers that JSON cannot represent: NaN and the infinities.

    Args:
        value: numbers, texts, mappings and sequences, nested.
        other: returns the replacement of a number that is not finite; the default is None.

    Returns:
        The value, with mappings as dicts and sequences as lists.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else other(value)
    if isinstance(value, Mapping):
        return {name: encode_finite(item, other) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_finite(item, other) for item in value]
    return value


def check_names(spec: Any) -> None:
    """Refuse a specification that cannot be recorded, before any work is done: names of files may
    hold bytes that are not UTF-8, and JSON cannot.

    Args:
        spec: JSON values, including names of files.

    Raises:
        RecordError: a text is not valid Unicode.
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
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"{repeated_name(pairs)[:_SHOWN]!r} more than once in an object")
    return fields


def repeated_name(pairs: list[tuple[str, Any]]) -> str:
    """Find the first name that occurs more than once.

    Args:
        pairs: names and values of an object, as `json` passes them to `object_pairs_hook`.

    Returns:
        The name.
    """
    counts = Counter(name for name, _ in pairs)
    return next(name for name, count in counts.items() if count > 1)


def _check(where: str | Path, value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > _DEEPEST:
            raise RecordError(f"{where}: damaged: nested more than {_DEEPEST} levels deep")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += [*item, *item.values()]
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str) and not is_unicode(item):
                raise RecordError(f"{where}: damaged: {item[:_SHOWN]!r} is not valid Unicode")
        level, depth = deeper, depth + 1


def is_unicode(text: str) -> bool:
    """Tell whether a text can be encoded as UTF-8.

    Returns:
        False if it has a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
