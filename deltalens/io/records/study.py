"""Study folders: specification, journal of finished cells, and tidy table. No torch here.

`study.json` holds the specification of the study and facts found on the way. `cells.jsonl` is the
journal: one line per finished cell, flushed to the disk before the next cell starts. `cells.csv` is
the table. `texts.json` holds the texts on which fidelity is measured, and `failures.jsonl` says
which cells failed, and why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.files import append_to, discard
from deltalens.io.folders import check_new_folder
from deltalens.io.locks import is_remains
from deltalens.io.records.failures import FAILURES, Failure, read_failures
from deltalens.io.records.folder import RecordFolder
from deltalens.io.records.identity import Union
from deltalens.io.records.journal import (
    JOURNAL,
    Cell,
    Setting,
    journal_lines,
    parse_line,
    read_journal,
)
from deltalens.io.records.study_manifest import (
    STUDY,
    cell_kind,
    check_facts,
    read_manifest,
)
from deltalens.io.records.table import TABLE, write_table
from deltalens.io.records.texts import TEXTS
from deltalens.io.version import IDENTITY

__all__ = ["StudyFolder", "check_study_folder"]


def check_study_folder(path: Path, inputs: Sequence[Path], kind: str | None = None) -> None:
    """Refuse a folder in which a study can be neither started nor resumed. Nothing is created.

    Args:
        path: the folder.
        inputs: paths that are read.
        kind: if set, a study that is in the folder already must be of this kind.

    Raises:
        DeltaLensError: the folder overlaps an input, contains something else, or cannot be created.
    """
    if os.path.isfile(path / STUDY.name):
        recorded = STUDY.read(path)["asked"]["kind"] if kind else None
        if recorded != kind:
            raise RecordError(f"{path}: contains a study of kind {recorded}; choose another folder")
        return
    try:
        if path.is_dir() and all(is_remains(file.name) for file in path.iterdir()):
            return
    except OSError as error:
        raise RecordError(f"{path}: cannot be used: {error.strerror}") from error
    check_new_folder(path, list(inputs))


class StudyFolder(RecordFolder):
    """A study folder that is open for writing, by one process at a time; use `open`.

    Attributes:
        path: the folder.
        spec: the specification. After resuming a study that grows, that of a single call for all of
            it.
        columns: the columns of a cell's setting.
        facts: facts found on the way; `write_manifest` records them.
        cells: the finished cells, in the order of the journal.
        failures: the cells that failed when they were last measured.
    """

    manifest = STUDY

    def __init__(
        self,
        path: Path,
        spec: Setting,
        columns: Sequence[str],
        fresh: bool,
        axes: Mapping[str, Union] | None,
        not_resumable: str | None,
    ) -> None:
        super().__init__(path, spec)
        self.columns = tuple(columns)
        self.cells: list[Cell] = []
        self.failures: list[Failure] = []
        self._fresh, self._axes, self._not_resumable = fresh, axes, not_resumable
        self._kind = cell_kind(path / STUDY.name, self.spec, columns)
        self._spec_grew = False
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
        not_resumable: str | None = None,
    ) -> StudyFolder:
        """Start a study, or resume the one in the folder; along some axes the two may differ.

        Args:
            path: the folder; created if missing.
            kind: the kind of study: `drop-study`, ...
            spec: the identity: everything that decides the numbers, as JSON values.
            columns: the columns of a cell's setting, in the table's order.
            fresh: start over, whatever study is in the folder.
            axes: fields of `spec` that may differ from the recorded ones, and how the values are
                united. The result's `spec` is then that of a single call for both.
            not_resumable: why a later call could not be known to have the same specification; None
                if it can.

        Returns:
            The study, locked for this process.

        Raises:
            RecordError: the folder contains something else, another study (the fields that differ
                are listed) or one that cannot be resumed (the message says why); or another process
                is writing to it.
        """
        return cls(Path(path), {"kind": kind, **spec}, columns, fresh, axes, not_resumable)

    def _is_new(self) -> bool:
        names = [file.name for file in self.path.iterdir()] if self.path.exists() else []
        if STUDY.name in names:
            return self._fresh
        if others := sorted(name for name in names if not is_remains(name)):
            raise RecordError(
                f"{self.path}: contains {others[0]!r}, but no study; choose another folder"
            )
        return True

    def _start(self) -> None:
        # The manifest is replaced last: without it, the folder would not be recognized as a study.
        for name in (JOURNAL, FAILURES, TABLE):
            discard(self.path / name)
        self.write_manifest()

    def _resume(self) -> None:
        manifest = read_manifest(self.path)
        cell_kind(self.path / STUDY.name, manifest["asked"], manifest["columns"])
        self._unite(manifest, self._axes, " (choose another folder, or set `fresh` to start over)")
        self._spec_grew = self.spec != manifest["asked"]
        table = self.path / TABLE
        if table.is_dir() and not table.is_symlink():
            raise RecordError(f"{table}: a folder where the study's table belongs; remove it")
        if self._not_resumable is not None:
            raise RecordError(f"{self.path} cannot be resumed: {self._not_resumable}")
        self.facts = manifest["facts"]
        self.cells = self._journal(repair=True)
        self.failures = read_failures(self.path / FAILURES, self.columns, repair=True)
        check_facts(self.path / STUDY.name, manifest, self.cells)

    def _manifest_fields(self) -> dict[str, Any]:
        columns = list(self.columns)
        return {"identity": IDENTITY, "asked": self.spec, "columns": columns, "facts": self.facts}

    def _journal(self, repair: bool = False) -> list[Cell]:
        return read_journal(self.path / JOURNAL, self._kind, repair)

    def append(self, cell: Cell) -> None:
        """Record a finished cell; it is on the disk when this returns.

        Args:
            cell: the cell.

        Raises:
            RecordError: see `extend`.
        """
        self.extend([cell])

    def extend(self, cells: Sequence[Cell]) -> None:
        """Record cells that were finished together; they are on the disk when this returns.

        Args:
            cells: the cells.

        Raises:
            RecordError: a cell could not be read again (for instance, a metric's name is not a
                text), or the disk is full.
        """
        file, lines = self.path / JOURNAL, journal_lines(cells)
        as_read = [parse_line(f"{file}, a line to be written", line, self._kind) for line in lines]
        append_to(file, b"".join(lines))
        self.cells += as_read

    def fail(self, setting: Setting, reason: str) -> None:
        """Record that a cell failed; it is on the disk when this returns.

        Args:
            setting: of the cell; or, if several cells are measured together, what they have in
                common.
            reason: why, on any number of lines.

        Raises:
            DeltaLensError: the disk is full.
        """
        self._settle(Failure(setting, reason))

    def forgive(self, setting: Setting) -> None:
        """Record that a cell is no longer one that failed: it was measured after all.

        Called before the cell itself is recorded, so that no cell can be both.

        Args:
            setting: as `fail` was given it; one that has not failed changes nothing.

        Raises:
            DeltaLensError: the disk is full.
        """
        if any(failure.setting == setting for failure in self.failures):
            self._settle(Failure(setting, None))

    def _settle(self, failure: Failure) -> None:
        append_to(self.path / FAILURES, failure.line())
        others = [other for other in self.failures if other.setting != failure.setting]
        self.failures = [*others, *([failure] if failure.reason is not None else ())]

    def write_table(self, order: Sequence[Setting]) -> None:
        """Write `cells.csv` from the journal: a row per cell and metric. Equal numbers result in a
        file with equal bytes.

        Args:
            order: the settings of the cells, in the order of the rows.

        Raises:
            DeltaLensError: the journal is damaged, or the folder not writable.
        """
        write_table(self.path, self._journal(), self.columns, order)

    def write_finished(self, order: Sequence[Setting]) -> None:
        """Write the table of a study in which every cell is finished. The manifest is written, too,
        if the specification grew without a new cell (more seeds, but nothing is random).

        Args:
            order: the settings of the cells, in the order of the rows.

        Raises:
            DeltaLensError: the journal is damaged, or the folder not writable.
        """
        if self._spec_grew:
            self.write_manifest()
        self.write_table(order)

    def close(self) -> None:
        """Unlock the folder. If no cell is finished, the study is removed."""
        try:
            if not self.cells and not self._journal():
                self.abandon()
        finally:
            self._release()

    def abandon(self) -> None:
        """See `RecordFolder.abandon`. If an earlier study left figures in the folder, the manifest
        stays: without it, the folder would not be recognized as a study."""
        written = {JOURNAL, FAILURES, TABLE, TEXTS.name}
        others = {file.name for file in self.path.iterdir() if not is_remains(file.name)} - written
        self._remove([*written, *((STUDY.name,) if others <= {STUDY.name} else ())])
