"""Checksums of the records that deltalens writes, to detect damage. No torch here.

XXH3-128 detects accidents (a torn write, a flipped bit, an edit by hand), not deliberate forgery.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from deltalens.errors import RecordError
from deltalens.io.files import open_plain
from deltalens.io.plain_json import parse_json

__all__ = ["CHECKSUM", "check_sealed", "checksum", "checksum_of_file", "parse_sealed", "sealed"]

_BUFFER = 1 << 22
CHECKSUM = "checksum"
"""The field of a sealed record that holds the checksum of all other fields."""


def checksum(content: bytes | bytearray | memoryview) -> str:
    """Compute the checksum of bytes.

    Returns:
        Their XXH3-128, as 32 hexadecimal digits.
    """
    return xxhash.xxh3_128_hexdigest(content)


def checksum_of_file(file: Path) -> tuple[int, str]:
    """Compute the checksum of a file.

    Returns:
        The file's size in bytes, and its checksum.

    Raises:
        RecordError: it is not a regular file.
        OSError: it cannot be read.
    """
    hashed, read = xxhash.xxh3_128(), 0
    buffer = memoryview(bytearray(_BUFFER))
    with open_plain(file) as stream:
        while count := stream.readinto(buffer):  # type: ignore[attr-defined]
            hashed.update(buffer[:count])
            read += count
    return read, hashed.hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum to a record; it does not depend on the order of fields or on white space.

    Args:
        record: its fields, as JSON values.

    Returns:
        The fields, and their checksum under `CHECKSUM`.

    Example:
        >>> from deltalens.io.checksum import check_sealed, sealed
        >>> check_sealed("cells.jsonl, line 1", sealed({"seconds": 1.5}))
    """
    values: dict[str, Any] = json.loads(json.dumps(record))
    values.pop(CHECKSUM, None)
    return {**values, CHECKSUM: _checksum_of_fields(values)}


def check_sealed(where: str | Path, record: Any, needed: bool = False) -> None:
    """Refuse a record that has changed since it was written.

    Args:
        where: the file and line that the record comes from, for the message.
        record: the record as it was read.
        needed: whether a checksum is required. Records of the first format had none.

    Raises:
        RecordError: the checksum does not match, or is required and missing.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{where}: damaged: not a JSON object")
    if CHECKSUM not in record:
        if needed:
            raise RecordError(f"{where}: damaged: its checksum is missing")
        return
    fields = {name: value for name, value in record.items() if name != CHECKSUM}
    if record[CHECKSUM] != _checksum_of_fields(fields):
        raise RecordError(f"{where}: damaged: its checksum does not match its content")


def parse_sealed(where: str | Path, content: bytes, needed: bool = True) -> dict[str, Any]:
    """Parse a sealed JSON text, and check it.

    Args:
        where: the file and line that the text comes from, for messages.
        content: the text, in UTF-8.
        needed: whether a checksum is required (see `check_sealed`).

    Returns:
        The record, with its checksum.

    Raises:
        RecordError: it is not valid JSON, or fails `check_sealed`.
    """
    parsed = parse_json(where, content)
    check_sealed(where, parsed, needed)
    record: dict[str, Any] = parsed
    return record


def _checksum_of_fields(fields: Mapping[str, Any]) -> str:
    return checksum(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
