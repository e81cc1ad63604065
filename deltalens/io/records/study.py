"""Study folders: what was asked, a journal of finished cells, and the tidy table. No torch here.

`study.json` holds what was asked and what was found out about it; `cells.jsonl` is the journal, one
line per finished cell, flushed to the disk before the next cell begins; `cells.csv` is the table;
`texts.json` keeps the texts that fidelity is measured on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import RecordError
from deltalens.io.files import append_to, discard
from deltalens.io.folders import check_new_folder
from deltalens.io.locks import is_remains
from deltalens.io.records.folder import Manifest, RecordFolder
from deltalens.io.records.identity import Union
from deltalens.io.records.journal import (
    JOURNAL,
    Cell,
    CellKind,
    Setting,
    journal_lines,
    parse_line,
    read_journal,
)
from deltalens.io.records.kinds import kind_of
from deltalens.io.records.schema import NAME, Fields, Items, refuse
from deltalens.io.records.table import TABLE, VALUES, as_in_table, read_table, write_table
from deltalens.io.records.texts import TEXTS
from deltalens.io.version import IDENTITY, has_checksums

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["StudyFolder", "StudyRecord", "check_study_folder", "load_study"]

STUDY = Manifest(
    "study",
    "study.json",
    Fields({"asked": Fields({"kind": NAME}), "facts": Fields(), "columns": Items(NAME, 0, 100)}),
)


def check_study_folder(path: Path, inputs: Sequence[Path], kind: str | None = None) -> None:
    """Refuse a folder in which no study can be begun or gone on with; nothing is made yet.

    Args:
        path: the folder.
        inputs: what is read.
        kind: of the study that will replace the one in the folder, if it is to be of one kind.

    Raises:
        DeltaLensError: it is (or lies in) an input, holds something else, or cannot be made.
    """
    if os.path.isfile(path / STUDY.name):
        held = STUDY.read(path)["asked"]["kind"] if kind else None
        if held != kind:
            raise RecordError(f"{path}: holds a {held}; choose another folder")
        return
    try:
        if path.is_dir() and all(is_remains(file.name) for file in path.iterdir()):
            return
    except OSError as error:
        raise RecordError(f"{path}: cannot be used: {error.strerror}") from error
    check_new_folder(path, list(inputs))


class StudyFolder(RecordFolder):
    """A study folder open for writing, by one process at a time. Made by `open`."""

    manifest = STUDY

    def __init__(
        self,
        path: Path,
        spec: Setting,
        columns: Sequence[str],
        fresh: bool,
        axes: Mapping[str, Union] | None,
        once: str | None,
    ) -> None:
        super().__init__(path, spec)
        self.columns = tuple(columns)
        self.cells: list[Cell] = []
        self._fresh, self._axes, self._once = fresh, axes, once
        self._kind = _cell_kind(path / STUDY.name, self.spec, columns)
        self._grown = False
        self._open()

    @classmethod
    def open(
        cls,
        path: str | Path,
        kind: str,
        spec: Setting,
        columns: Sequence[str],
        fresh: bool = False,
        axes: Mapping[str, Union] | None = None,
        once: str | None = None,
    ) -> StudyFolder:
        """Begin a study, or go on with the same one, or with a smaller or larger one of its kind.

        Args:
            path: the folder; made if missing.
            kind: which study: `drop-study`, ...
            spec: everything that decides the numbers, as JSON values; the study's identity.
            columns: the names of a cell's setting, in the order of the table's columns.
            fresh: begin anew, whatever study the folder holds.
            axes: what of it may differ from what the folder holds, and how the two become one:
                then `spec` of the result is that of a single call for both.
            once: why nobody can know whether a later call asks for the same, if so.

        Raises:
            RecordError: the folder holds something else or another study (the fields that differ
                are named), or one that nobody can go on with (and why), or another process is
                writing to it.
        """
        return cls(Path(path), {"kind": kind, **spec}, columns, fresh, axes, once)

    def _is_new(self) -> bool:
        held = [file.name for file in self.path.iterdir()] if self.path.exists() else []
        if STUDY.name in held:
            return self._fresh
        if others := sorted(name for name in held if not is_remains(name)):
            raise RecordError(
                f"{self.path}: holds {others[0]!r} and no study; choose another folder"
            )
        return True

    def _begin(self) -> None:
        # The manifest goes last, replaced: without one the folder would be nobody's.
        for name in (JOURNAL, TABLE):
            discard(self.path / name)
        self.write_manifest()

    def _go_on(self) -> None:
        manifest = _read_manifest(self.path)
        _cell_kind(self.path / STUDY.name, manifest["asked"], manifest["columns"])
        self._unite(manifest, self._axes, " (use another folder, or --fresh)")
        self._grown = self.spec != manifest["asked"]
        table = self.path / TABLE
        if table.is_dir() and not table.is_symlink():
            raise RecordError(f"{table}: a folder where the study's table belongs; remove it")
        if self._once is not None:
            raise RecordError(f"{self.path} cannot be gone on with: {self._once}")
        self.facts = manifest["facts"]
        self.cells = self._journal(repair=True)
        _check_found(self.path / STUDY.name, manifest, self.cells)

    def _said(self) -> dict[str, Any]:
        columns = list(self.columns)
        return {"identity": IDENTITY, "asked": self.spec, "columns": columns, "facts": self.facts}

    def _journal(self, repair: bool = False) -> list[Cell]:
        return read_journal(self.path / JOURNAL, self._kind, repair)

    def append(self, cell: Cell) -> None:
        """Journal a finished cell; it is on the disk when this returns."""
        self.extend([cell])

    def extend(self, cells: Sequence[Cell]) -> None:
        """Journal cells that were finished together.

        Raises:
            RecordError: one could not be read again (a metric's name that is no text), or the disk
                is full.
        """
        file, lines = self.path / JOURNAL, journal_lines(cells)
        read = [parse_line(f"{file}, a line to be written", line, self._kind) for line in lines]
        append_to(file, b"".join(lines))
        self.cells += read

    def write_table(self, order: Sequence[Setting]) -> None:
        """Write `cells.csv` from the journal: a row per cell and metric, cells in this order. It
        repeats byte for byte whenever the numbers do."""
        write_table(self.path, self._journal(), self.columns, order)

    def write_finished(self, order: Sequence[Setting]) -> None:
        """Write the table of a study of which nothing is left to measure; and the manifest, if it
        was asked for more that makes no cell (seeds, and nothing is random)."""
        if self._grown:
            self.write_manifest()
        self.write_table(order)

    def close(self) -> None:
        """Let another process have the folder. Without a finished cell nothing stays of it."""
        try:
            if not self.cells and not self._journal():
                self.abandon()
        finally:
            self._let_go()

    def abandon(self) -> None:
        """See `RecordFolder`. Where an earlier study's pictures lie, the manifest stays: without
        one they would be nobody's."""
        written = {JOURNAL, TABLE, TEXTS.name}
        others = {file.name for file in self.path.iterdir() if not is_remains(file.name)} - written
        self._remove([*written, *((STUDY.name,) if others <= {STUDY.name} else ())])


@dataclass(frozen=True)
class StudyRecord:
    """A study as it lies on the disk."""

    path: Path
    kind: str
    spec: Setting
    """Everything that decided the numbers."""
    facts: dict[str, Any]
    """What was found out on the way: entries, unchanged share, notes."""
    cells: pd.DataFrame
    """The setting's columns, then metric, value, stderr, n; one row per cell and metric."""

    @property
    def plain(self) -> str:
        """What training without a mask is called: by what it learns by."""
        return "dpo" if self.spec.get("objective") == "dpo" else "sft"

    def setting(self, name: str, method: str) -> Any:
        """A setting of a method's trainings; None where there is none."""
        own = self.spec.get("settings", {}).get(method, {})
        return own[name] if name in own else self.spec.get(name)


def load_study(folder: str | Path) -> StudyRecord:
    """Read a study folder, finished or not, without torch.

    Raises:
        RecordError: no study there, or one of a format this version does not know.
    """
    import pandas as pd

    path = Path(folder)
    manifest = _read_manifest(path)
    spec, columns = manifest["asked"], manifest["columns"]
    kind = _cell_kind(path / STUDY.name, spec, columns, has_checksums(manifest["format"]))
    table = read_table(path)  # First: what it lists is in the journal by then.
    cells = read_journal(path / JOURNAL, kind)
    _check_found(path / STUDY.name, manifest, cells)
    rows = [
        {**cell.setting, "metric": name, **m._asdict()}
        for cell in as_in_table(path, table, cells, columns)
        for name, m in cell.metrics.items()
    ]
    frame = pd.DataFrame(rows, columns=[*columns, *VALUES])
    return StudyRecord(path, spec["kind"], spec, manifest["facts"], frame)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with what is asked and the facts as their kind has them."""
    file, manifest = path / STUDY.name, STUDY.read(path)
    spec, facts, known = manifest["asked"], manifest["facts"], kind_of(manifest["asked"])
    if known is not None:
        refuse(file, [*known.spec.faults(spec, "asked")])
        there = Fields(known={**known.facts.known, **known.facts.needed})
        refuse(file, [*there.faults(facts, "facts")])
        refuse(file, [*(known.rule(spec, facts) if known.rule else ())])
    return manifest


def _cell_kind(file: Path, spec: Setting, columns: Sequence[str], sealed: bool = True) -> CellKind:
    known = kind_of(spec)
    if known is not None and tuple(columns) != tuple(known.columns):
        raise RecordError(f"{file}: columns is {[*columns]}, where {[*known.columns]} should be")
    if len({*columns, *VALUES}) < len(columns) + len(VALUES):
        raise RecordError(f"{file}: columns is {[*columns]}, where names that differ should be")
    if known is None:
        return CellKind.any(columns, sealed)
    return CellKind(known.columns, known.metrics, sealed)


def _check_found(file: Path, manifest: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Once a cell is finished, the facts that its kind needs are there."""
    known = kind_of(manifest["asked"])
    if known is not None and cells:
        refuse(file, [*Fields(known.facts.needed).faults(manifest["facts"], "facts")])
