"""The metrics that a training logs: one line of JSON per step and per evaluation."""

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
"""Spelled as text, as JSON has no such numbers."""


class Metrics:
    """A training's file of metrics. Lines are appended; they are removed only if the training is
    resumed from an earlier step.

    Args:
        folder: the training's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / METRICS

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on the disk when this returns.

        Args:
            line: metrics by name, with the step under `step`.

        Raises:
            RecordError: no space left, or something other than a regular file has this name.
        """
        text = json.dumps(encode_finite(line, str), allow_nan=False)
        append_to(self.file, f"{text}\n".encode())

    def lines(self) -> list[dict[str, Any]]:
        """Read all lines so far.

        Returns:
            Metrics by name, one dict per line.

        Raises:
            RecordError: a line is malformed, or something other than a regular file has this name.
        """
        lines = []
        for number, raw in enumerate(self._content().splitlines(), 1):
            where = f"{self.file}, line {number}"
            line = parse_json(where, raw)
            require(where, line, _LINE)
            lines.append(_decoded(line))
        return lines

    def extent(self) -> tuple[int, str]:
        """Get the current extent of the file, for `truncate`.

        Returns:
            Its size in bytes, and its checksum.
        """
        return checksum_of_file(self.file) if self.file.exists() else (0, checksum(b""))

    def truncate(self, size: int, expected: str) -> bool:
        """Remove what was appended after an earlier point.

        Args:
            size: size of the file at that point, in bytes.
            expected: checksum of the file at that point.

        Returns:
            False if the file is missing, which does not prevent a training from being resumed.

        Raises:
            RecordError: the file is damaged.
        """
        content = self._content()
        if not content and size:
            return False
        if checksum(content[:size]) != expected:
            raise RecordError(
                f"{self.file}: damaged: its beginning changed since the last checkpoint was "
                "written; restore it, or remove it and resume: the metrics so far are then lost"
            )
        if len(content) > size:
            write_whole(self.file, content[:size])
        return True

    def clear(self) -> None:
        """Remove all lines."""
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
