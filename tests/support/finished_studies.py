"""A small finished study of each kind, in today's format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from deltalens.io.checksum import sealed
from deltalens.io.records import Cell, Measurement, StudyFolder, StudyRecord
from deltalens.io.version import FORMAT, IDENTITY
from deltalens.reports import Summary, summarize

BEFORE = Path(__file__).with_name("before")
SUMMARIZED = tuple(sorted(folder.name for folder in BEFORE.iterdir()))
KINDS = (*SUMMARIZED, "inspect")


def make_study(folder: Path, kind: str) -> Path:
    """A folder with a study: one of the first version, as today's would have written it."""
    if kind == "inspect":
        return _make_inspection(folder)
    shutil.copytree(BEFORE / kind, folder)
    study = json.loads((folder / "study.json").read_bytes())
    study = sealed({**study, "format": FORMAT, "identity": IDENTITY})
    (folder / "study.json").write_text(json.dumps(study, indent=2) + "\n")
    lines = (folder / "cells.jsonl").read_bytes().splitlines()
    cells = [json.dumps(sealed(json.loads(line))) + "\n" for line in lines]
    (folder / "cells.jsonl").write_text("".join(cells))
    return folder


def _make_inspection(folder: Path) -> Path:
    spec = {"ft": "a", "base": "b"}
    study = StudyFolder.open(folder, "inspect", spec, ("level", "name"))
    layers = {"model.layers.0": [[-12, 5], [-10, 25]], "model.layers.1": [[-11, 30]]}
    study.facts = {"per_octave": 4, "histograms": layers, "notes": []}
    study.write_manifest()
    names = [("overall", "all"), *(("layer", name) for name in layers)]
    metrics = {"unchanged": Measurement(0.1, n=30), "kurtosis": Measurement(3.0, n=30)}
    cells = [Cell({"level": level, "name": name}, metrics, 0.0) for level, name in names]
    study.extend(cells)
    study.write_table([cell.setting for cell in cells])
    study.close()
    return folder


def said_of(record: StudyRecord, kind: str) -> list[str]:
    """All that a summary says."""
    found = summarize(record)
    return [*_words(found)]


def _words(found: Summary) -> Iterator[str]:
    yield from found.sentences()
    yield from map(str, found.tables())
    yield json.dumps(found.as_json())
