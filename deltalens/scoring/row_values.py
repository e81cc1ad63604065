"""What every file of rows comes to: records that are read one by one, and an end to what it may
unpack to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltalens.errors import DataError

__all__ = ["FREE", "Record", "check_expansion", "parse_json"]

Record = tuple[str, Callable[[], Any]]
"""Where it stands ("line 3"), and what reads it or raises a ValueError."""

FREE, _RATIO = 64 << 20, 100
"""Bytes that any file may unpack to, and beyond them how many times its own size."""


def check_expansion(path: Path, given: int, size: int) -> None:
    """Refuse what unpacks to far more than any data would.

    Args:
        path: the file.
        given: bytes that it unpacks to, at least.
        size: its own.

    Raises:
        DataError: with both numbers.
    """
    if given > max(FREE, _RATIO * size):
        raise DataError(
            f"{path}: unpacks to more than {_RATIO} times its {size:,} bytes ({given:,} at least), "
            "which data does not; if it is data, unpack it first"
        )


def parse_json(text: bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: not UTF-8, or not JSON.
    """
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
