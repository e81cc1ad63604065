"""Which steps of a folder are finished, one line each, on the disk before the next begins."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from deltalens.errors import RecordError
from deltalens.io.files import append_to, read_bounded, write_whole
from deltalens.io.version import version

__all__ = ["FAILED", "FINISHED", "Journal", "Line"]

FINISHED, FAILED = "finished", "failed"
_NAME = "reproduced.jsonl"
_LARGEST = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Line:
    """What became of a step."""

    step: str
    identity: str
    state: str
    reason: str = ""
    """Why it failed."""
    seconds: float = 0.0
    version: str = ""
    """Of deltalens."""


class Journal:
    """The steps of a folder.

    Args:
        folder: of the results; made with the first line.

    Raises:
        RecordError: a line is damaged; a torn last one is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / _NAME
        self._last: dict[str, Line] = {}
        if not self._file.is_file():
            return
        content = read_bounded(self._file, _LARGEST, "journal", RecordError)
        lines = content.decode("utf-8", errors="replace").split("\n")
        for number, text in enumerate(lines[:-1], start=1):
            try:
                line = Line(**json.loads(text))
            except (ValueError, TypeError) as error:
                raise RecordError(
                    f"{self._file}: line {number} is no step ({error}); remove it, and its step "
                    "runs again"
                ) from error
            self._last[line.step] = line
        if lines[-1]:
            write_whole(self._file, content[: content.rfind(b"\n") + 1])

    def of(self, step: str) -> Line | None:
        """Look up a step.

        Args:
            step: its name.

        Returns:
            Its last line; None if it never ended.
        """
        return self._last.get(step)

    def add(self, step: str, identity: str, state: str, begun: float, reason: str = "") -> Line:
        """Note the end of a step.

        Args:
            step: its name.
            identity: of what decides its result.
            state: `FINISHED` or `FAILED`.
            begun: when, by `time.monotonic`.
            reason: why it failed.

        Returns:
            The line.
        """
        seconds = round(time.monotonic() - begun, 3)
        line = Line(
            step=step,
            identity=identity,
            state=state,
            reason=reason,
            seconds=seconds,
            version=version(),
        )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        append_to(self._file, (json.dumps(line.__dict__) + "\n").encode())
        self._last[step] = line
        return line
