"""Records of a file of rows, parsed one by one, and a limit on what a file may expand to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltalens.errors import DataError

__all__ = ["ALWAYS_ALLOWED", "Record", "check_expansion", "parse_json"]

Record = tuple[str, Callable[[], Any]]
"""Where a record is in its file ("line 3"), and a function that parses it or raises ValueError."""

ALWAYS_ALLOWED, _RATIO = 64 << 20, 100
"""Bytes that any file may expand to; and how many times its size a larger file may expand to."""


def check_expansion(path: Path, expanded: int, size: int) -> None:
    """Refuse a file that expands to far more than data would.

    Args:
        path: the file.
        expanded: bytes that it expands to, at least.
        size: bytes of the file itself.

    Raises:
        DataError: states both numbers.
    """
    if expanded > max(ALWAYS_ALLOWED, _RATIO * size):
        raise DataError(
            f"{path}: expands to more than {_RATIO} times its {size:,} bytes (to at least "
            f"{expanded:,}), which real data does not do; if it is real data, decompress it first"
        )


def parse_json(text: bytes) -> Any:
    """Parse a JSON text.

    Args:
        text: in UTF-8, with or without a byte order mark.

    Returns:
        The value.

    Raises:
        ValueError: it is not UTF-8, or not JSON.
    """
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
