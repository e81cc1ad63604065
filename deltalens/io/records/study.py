"""Study folders: specification, journal of finished cells, and tidy table. No torch here.

`study.json` holds the specification of the study and facts found on the way. `cells.jsonl` is the
journal: one line per finished cell, flushed to the disk before the next cell starts. `cells.csv` is
the table. `texts.json` holds the texts on which fidelity is measured, and `failures.jsonl` says
which cells failed, and why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import RecordError
from deltalens.io.escaping import short_path
from deltalens.io.files import append_to, discard
from deltalens.io.folders import check_new_folder
from deltalens.io.locks import is_remains
from deltalens.io.records.failures import FAILURES, Failure, read_failures
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
from deltalens.io.records.schema import NAME, Fields, Items, Text, Whole, refuse
from deltalens.io.records.table import TABLE, VALUES, as_in_table, read_table, write_table
from deltalens.io.records.texts import TEXTS
from deltalens.io.version import IDENTITY, has_checksums

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "StudyFolder",
    "StudyRecord",
    "check_study_folder",
    "is_study",
    "load_study",
    "recorded_settings",
    "specification_of",
]

STUDY = Manifest(
    "study",
    "study.json",
    Fields({"asked": Fields({"kind": NAME}), "facts": Fields(), "columns": Items(NAME, 0, 100)}),
)


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


def recorded_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Look up the methods' settings of the study that a folder may contain.

    Args:
        path: the folder.

    Returns:
        Label of a method -> its own settings; {} if there is no study, or one without methods.

    Raises:
        RecordError: there is a study, and it is damaged.
    """
    if not os.path.isfile(path / STUDY.name):
        return {}
    settings: dict[str, dict[str, Any]] = _read_manifest(path)["asked"].get("settings") or {}
    return settings


def specification_of(path: Path) -> Setting:
    """Read the specification of the study in a folder; it does not change while cells are measured.

    Args:
        path: the folder.

    Returns:
        JSON values by name.

    Raises:
        RecordError: there is no study, or its manifest is damaged.
    """
    specification: Setting = STUDY.read(path)["asked"]
    return specification


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
        self._kind = _cell_kind(path / STUDY.name, self.spec, columns)
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
        manifest = _read_manifest(self.path)
        _cell_kind(self.path / STUDY.name, manifest["asked"], manifest["columns"])
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
        _check_facts(self.path / STUDY.name, manifest, self.cells)

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


@dataclass(frozen=True, repr=False)
class StudyRecord:
    """A study, read from its folder."""

    path: Path
    kind: str
    """The kind of study: `drop-study`, ..."""
    spec: Setting
    """The specification: everything that decided the numbers."""
    facts: dict[str, Any]
    """Facts found on the way: entries, unchanged entries, notes."""
    cells: pd.DataFrame
    """One row per cell and metric: the setting's columns, then metric, value, stderr, n."""
    failures: tuple[Failure, ...] = ()
    """The cells that failed when they were last measured; asking again measures them again."""
    version: str = ""
    """The deltalens that wrote it."""
    identity: int = IDENTITY
    """Which version of what decides the numbers it recorded (`deltalens.io.version.IDENTITY`)."""

    def __repr__(self) -> str:
        setting = [name for name in self.cells.columns if name not in VALUES]
        cells = len(self.cells[setting].drop_duplicates()) if setting else 0
        metrics = [str(name) for name in self.cells["metric"].unique()]
        names = ", ".join(metrics[:4]) + (", ..." if len(metrics) > 4 else "")
        return (
            f"<{type(self).__name__} {short_path(self.path)}: {self.kind[:40]}, "
            f"{cells:,} finished cells, {len(metrics):,} metrics"
            f"{f' ({names[:100]})' if metrics else ''}>"
        )

    @property
    def plain(self) -> str:
        """The name of training without a mask in this study: `dpo` if that is the objective, else
        `sft`."""
        return "dpo" if self.spec.get("objective") == "dpo" else "sft"

    def setting(self, name: str, method: str) -> Any:
        """Look up a setting of a method's trainings.

        Args:
            name: the setting: `mask_ratio`, ...
            method: the method: `gmt`, ...

        Returns:
            The method's value or else the one for all methods; None if there is neither.
        """
        of_method = self.spec.get("settings", {}).get(method, {})
        return of_method[name] if name in of_method else self.spec.get(name)


def is_study(folder: str | Path) -> bool:
    """Tell whether a folder is a study's.

    Args:
        folder: any path.

    Returns:
        Whether it has a study's manifest.
    """
    return Path(folder, STUDY.name).is_file()


def load_study(folder: str | Path) -> StudyRecord:
    """Read a study, finished or not. torch is not imported.

    Args:
        folder: the study's folder.

    Returns:
        Specification, facts and cells (a pandas DataFrame).

    Raises:
        RecordError: the folder is not a study, is damaged, or has a format that this version does
            not know.

    Example:
        >>> study = load_study("study")
        >>> study.kind
        'drop-study'
        >>> list(study.cells.columns)
        ['strategy', 'scope', 'rate', 'seed', 'metric', 'value', 'stderr', 'n']
    """
    import pandas as pd

    path = Path(folder)
    manifest = _read_manifest(path)
    spec, columns = manifest["asked"], manifest["columns"]
    kind = _cell_kind(path / STUDY.name, spec, columns, has_checksums(manifest["format"]))
    table = read_table(path)  # Before the journal, which then has every cell of the table.
    cells = read_journal(path / JOURNAL, kind)
    _check_facts(path / STUDY.name, manifest, cells)
    rows = [
        {**cell.setting, "metric": name, **measurement._asdict()}
        for cell in as_in_table(path, table, cells, columns)
        for name, measurement in cell.metrics.items()
    ]
    frame = pd.DataFrame(rows, columns=[*columns, *VALUES])
    return StudyRecord(
        path,
        spec["kind"],
        spec,
        manifest["facts"],
        frame,
        tuple(read_failures(path / FAILURES, columns)),
        manifest.get("deltalens", ""),
        manifest.get("identity", 0),
    )


_WRITTEN_BY = Fields(known={"deltalens": Text(), "identity": Whole()})


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a study, with the specification and facts checked for its kind."""
    file, manifest = path / STUDY.name, STUDY.read(path)
    refuse(file, [*_WRITTEN_BY.faults(manifest, "")])
    spec, facts, kind = manifest["asked"], manifest["facts"], kind_of(manifest["asked"])
    if kind is not None:
        refuse(file, [*kind.spec.faults(spec, "asked")])
        present = Fields(known={**kind.facts.known, **kind.facts.needed})
        refuse(file, [*present.faults(facts, "facts")])
        refuse(file, [*(kind.rule(spec, facts) if kind.rule else ())])
    return manifest


def _cell_kind(file: Path, spec: Setting, columns: Sequence[str], sealed: bool = True) -> CellKind:
    kind = kind_of(spec)
    expected = {} if kind is None else kind.columns(spec)
    if kind is not None and tuple(columns) != tuple(expected):
        raise RecordError(f"{file}: columns is {[*columns]}; expected {[*expected]}")
    if len({*columns, *VALUES}) < len(columns) + len(VALUES):
        raise RecordError(f"{file}: columns is {[*columns]}; expected names that all differ")
    if kind is None:
        return CellKind.any(columns, sealed)
    return CellKind(expected, kind.metrics, sealed)


def _check_facts(file: Path, manifest: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Refuse a study with finished cells that lacks a fact that its kind requires."""
    kind = kind_of(manifest["asked"])
    if kind is not None and cells:
        refuse(file, [*Fields(kind.facts.needed).faults(manifest["facts"], "facts")])
