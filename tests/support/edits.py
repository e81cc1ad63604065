"""Records changed as somebody would who knows the checksums: what they say is then all there is to
check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltalens.io.checksum import CHECKSUM, sealed

Change = Callable[[Any], Any]
"""Changes a JSON value in place, or returns another one."""


def edit(file: Path, change: Change, line: int | None = None) -> None:
    """Change a record, or a line of a journal (from 0), and seal it again if it was sealed."""
    if line is None:
        file.write_bytes(changed(file.read_bytes(), change))
        return
    lines = file.read_bytes().splitlines()
    lines[line] = changed(lines[line], change)
    file.write_bytes(b"\n".join(lines) + b"\n")


def changed(raw: bytes, change: Change) -> bytes:
    """A record's text with a change."""
    value = json.loads(raw)
    was_sealed = isinstance(value, dict) and value.pop(CHECKSUM, None) is not None
    found = change(value)
    value = value if found is None else found
    if was_sealed and isinstance(value, dict):
        value = sealed(value)
    return json.dumps(value).encode()
