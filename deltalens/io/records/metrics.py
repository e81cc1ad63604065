"""What a training measures as it goes: a line of JSON for each step and each evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.checksum import checksum, checksum_of_file
from deltalens.io.files import append_to, discard, read_plain, write_whole
from deltalens.io.plain_json import encode_finite, parse_json
from deltalens.io.records.schema import COUNT, Fields, require

__all__ = ["METRICS", "Metrics"]

METRICS = "metrics.jsonl"
_LINE = Fields({"step": COUNT})
_NOT_FINITE = ("nan", "inf", "-inf")
"""As text: JSON has no such numbers."""


class Metrics:
    """The file of a training's metrics; only ever added to, but where a training goes on from an
    earlier step.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / METRICS

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line; it is on the disk when this returns.

        Raises:
            RecordError: no space left, or no plain file is in its place.
        """
        text = json.dumps(encode_finite(line, str), allow_nan=False)
        append_to(self.file, f"{text}\n".encode())

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far.

        Raises:
            RecordError: one is no line of metrics, or no plain file is in its place.
        """
        found = []
        for number, raw in enumerate(self._content().splitlines(), 1):
            where = f"{self.file}, line {number}"
            line = parse_json(where, raw)
            require(where, line, _LINE)
            found.append(_decoded(line))
        return found

    def extent(self) -> tuple[int, str]:
        """How many bytes there are, and their checksum."""
        return checksum_of_file(self.file) if self.file.exists() else (0, checksum(b""))

    def go_back_to(self, size: int, known: str) -> bool:
        """Take back what was added after so many bytes.

        Args:
            size, known: `extent` as it was then.

        Returns:
            Whether it was there: a file that somebody removed does not stop a training.

        Raises:
            RecordError: the file is damaged.
        """
        content = self._content()
        if not content and size:
            return False
        if checksum(content[:size]) != known:
            raise RecordError(
                f"{self.file}: damaged: it no longer begins as it did when the last checkpoint was "
                "written; put it back, or remove it and resume: it goes on without the lines so far"
            )
        if len(content) > size:
            write_whole(self.file, content[:size])
        return True

    def clear(self) -> None:
        """Begin anew."""
        discard(self.file)

    def _content(self) -> bytes:
        try:
            return read_plain(self.file)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RecordError(f"{self.file}: cannot be read: {error.strerror}") from error


def _decoded(value: Any) -> Any:
    if value in _NOT_FINITE:
        return float(value)
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value
