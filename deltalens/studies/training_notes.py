"""What trainings said that ran in several processes, gathered in their study's record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deltalens.errors import RecordError
from deltalens.io.files import append_to, discard, read_plain
from deltalens.io.plain_json import parse_json
from deltalens.io.records import StudyFolder
from deltalens.io.records.schema import Items, Text, require

__all__ = ["NOTES", "gather_notes", "note"]

NOTES = ".notes"


def note(out: Path, notes: Sequence[str]) -> None:
    """Cells are made in several processes: each adds a line."""
    append_to(out / NOTES, (json.dumps(list(notes)) + "\n").encode())


def gather_notes(study: StudyFolder) -> None:
    """What trainings said goes into the study's own record. A torn line was never said."""
    file = study.path / NOTES
    try:
        lines = read_plain(file).split(b"\n")[:-1]
    except FileNotFoundError:
        return
    said: set[str] = set()
    for line in lines:
        # One that a kill tore belongs to a cell that is made again, and says it again.
        with suppress(RecordError):
            notes = parse_json(file, line)
            require(file, notes, Items(Text()))
            said.update(notes)
    study.facts["notes"] = sorted({*study.facts.get("notes", []), *said})
    study.write_manifest()
    discard(file)
