"""Notes of trainings that run in several processes, collected in their study's records."""

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
    """Add notes to the study. Cells run in several processes, and each appends one line to a file.

    Args:
        out: the study's folder.
        notes: for the study's records.
    """
    append_to(out / NOTES, (json.dumps(list(notes)) + "\n").encode())


def gather_notes(study: StudyFolder) -> None:
    """Move the notes of all trainings into the study's records.

    Args:
        study: the study's folder, open for writing.
    """
    file = study.path / NOTES
    try:
        # The last line is torn, if it has no line end.
        lines = read_plain(file).split(b"\n")[:-1]
    except FileNotFoundError:
        return
    gathered: set[str] = set()
    for line in lines:
        # A torn line belongs to a cell that was killed: it is trained again, with the same notes.
        with suppress(RecordError):
            notes = parse_json(file, line)
            require(file, notes, Items(Text()))
            gathered.update(notes)
    study.facts["notes"] = sorted({*study.facts.get("notes", []), *gathered})
    study.write_manifest()
    discard(file)
