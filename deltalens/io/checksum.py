"""Checksums of what deltalens wrote itself: whether a record is still what it was. No torch here.

XXH3-128 finds damage (a torn write, a flipped bit, an edit by hand), not a forger's work.
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
"""The field of a sealed record that holds the checksum of the others."""


def checksum(content: bytes | bytearray | memoryview) -> str:
    """XXH3-128 of bytes, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def checksum_of_file(file: Path) -> tuple[int, str]:
    """How many bytes a plain file has, and their checksum.

    Raises:
        RecordError: it is not a plain file.
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
    """A record of JSON values with the checksum of its fields as one more, whatever their order and
    the white space between them.

    Example:
        >>> check_sealed("cells.jsonl, line 1", sealed({"seconds": 1.5}))
    """
    values: dict[str, Any] = json.loads(json.dumps(record))
    values.pop(CHECKSUM, None)
    return {**values, CHECKSUM: _of_fields(values)}


def check_sealed(where: str | Path, record: Any, needed: bool = False) -> None:
    """Refuse a record that is not what was written.

    Args:
        where: it stands, for the message.
        record: as it was read.
        needed: it was sealed; else one without a checksum (of an earlier format) passes.

    Raises:
        RecordError: its checksum is another one, or it lacks one that it needs.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{where}: damaged: not a JSON object")
    if CHECKSUM not in record:
        if needed:
            raise RecordError(f"{where}: damaged: its checksum is missing")
        return
    fields = {name: value for name, value in record.items() if name != CHECKSUM}
    if record[CHECKSUM] != _of_fields(fields):
        raise RecordError(f"{where}: damaged: its checksum is not that of what it says")


def parse_sealed(where: str | Path, content: bytes, needed: bool = True) -> dict[str, Any]:
    """The record that a sealed JSON text holds; arguments and errors as for `check_sealed`."""
    record = parse_json(where, content)
    check_sealed(where, record, needed)
    held: dict[str, Any] = record
    return held


def _of_fields(fields: Mapping[str, Any]) -> str:
    return checksum(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
