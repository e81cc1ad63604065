"""Study folders: what was asked, a journal of finished cells, and the tidy table. No torch here.

`study.json` holds what was asked and what was found out about it; `cells.jsonl` is the journal, one
line per finished cell, flushed to the disk before the next cell begins; `cells.csv` is the table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deltalens.errors import RecordError
from deltalens.io.escaping import plain_cell
from deltalens.io.files import append_to, discard, read_plain, write_whole
from deltalens.io.folders import check_new_folder
from deltalens.io.locks import LOCK, is_remains, lock_folder
from deltalens.io.plain_json import check_names
from deltalens.io.records.folder import read_manifest, write_manifest
from deltalens.io.records.identity import Union, check_version, united
from deltalens.io.records.journal import (
    Cell,
    CellKind,
    Measurement,
    Setting,
    journal_lines,
    parse_line,
    read_journal,
)
from deltalens.io.records.kinds import kind_of
from deltalens.io.records.schema import NAME, Fields, Items, refuse, require
from deltalens.io.version import IDENTITY, has_checksums

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Cell",
    "Measurement",
    "Setting",
    "StudyFolder",
    "StudyRecord",
    "check_study_folder",
    "encode_finite",
    "load_study",
]

MANIFEST, JOURNAL, TABLE = "study.json", "cells.jsonl", "cells.csv"


def check_study_folder(path: Path, inputs: Sequence[Path], kind: str | None = None) -> None:
    """Refuse a folder in which no study can be begun or gone on with; nothing is made yet.

    Args:
        path: the folder.
        inputs: what is read.
        kind: of the study that will replace the one in the folder, if it is to be of one kind.

    Raises:
        DeltaLensError: it is (or lies in) an input, holds something else, or cannot be made.
    """
    if os.path.isfile(path / MANIFEST):
        held = _held(path)["asked"]["kind"] if kind else None
        if held != kind:
            raise RecordError(f"{path}: holds a {held}; choose another folder")
        return
    try:
        if path.is_dir() and all(is_remains(file.name) for file in path.iterdir()):
            return
    except OSError as error:
        raise RecordError(f"{path}: cannot be used: {error.strerror}") from error
    check_new_folder(path, list(inputs))


class StudyFolder:
    """A study folder open for writing, by one process at a time."""

    def __init__(self, path: Path, columns: Sequence[str], lock: IO[bytes], asked: Setting) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.asked = asked
        self.facts: dict[str, Any] = {}
        self.cells: list[Cell] = []
        self._lock = lock
        self._kind = _cell_kind(path / MANIFEST, asked, columns)
        self._made: list[Path] = []
        self._grown = False

    @classmethod
    def open(
        cls,
        path: str | Path,
        kind: str,
        asked: Setting,
        columns: Sequence[str],
        fresh: bool = False,
        axes: Mapping[str, Union] | None = None,
        once: str | None = None,
    ) -> StudyFolder:
        """Begin a study, or go on with the same one, or with a smaller or larger one of its kind.

        Args:
            path: the folder; made if missing.
            kind: which study: `drop-study`, ...
            asked: everything that decides the numbers, as JSON values; the study's identity.
            columns: the names of a cell's setting, in the order of the table's columns.
            fresh: begin anew, whatever study the folder holds.
            axes: what of it may differ from what the folder holds, and how the two become one:
                then `asked` of the result is that of a single call for both.
            once: why nobody can know whether a later call asks for the same, if so.

        Raises:
            RecordError: the folder holds something else or another study (the fields that differ
                are named), or one that nobody can go on with (and why), or another process is
                writing to it.
        """
        path = Path(path)
        check_names([kind, asked])
        asked = json.loads(json.dumps({"kind": kind, **asked}))
        made = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
        begun = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            others = [file.name for file in path.iterdir() if not is_remains(file.name)]
            if others and MANIFEST not in others:
                raise RecordError(
                    f"{path}: holds {sorted(others)[0]!r} and no study; choose another folder"
                )
            lock = lock_folder(path, "study")
        except OSError as error:
            raise RecordError(f"{path}: cannot be used: {error.strerror}") from error
        try:
            study = cls(path, columns, lock, asked)
            if fresh:
                # The manifest goes last, replaced: without one the folder would be nobody's.
                for name in (JOURNAL, TABLE):
                    discard(path / name)
            study._made = made
            begun = fresh or not (path / MANIFEST).exists()
            if begun:
                study.write_manifest()
            else:
                study._resume(axes, once)
        except BaseException:
            if begun:
                with suppress(RecordError):
                    study._remove()
            lock.close()
            raise
        return study

    def _resume(self, axes: Mapping[str, Union] | None, once: str | None) -> None:
        manifest = _read_manifest(self.path)
        check_version(self.path, manifest)
        _cell_kind(self.path / MANIFEST, manifest["asked"], manifest["columns"])
        headline = f"{self.path} holds another study (use another folder, or --fresh):"
        self.asked = united(headline, manifest["asked"], self.asked, axes)
        self._grown = self.asked != manifest["asked"]
        table = self.path / TABLE
        if table.is_dir() and not table.is_symlink():
            raise RecordError(f"{table}: a folder where the study's table belongs; remove it")
        if once is not None:
            raise RecordError(f"{self.path} cannot be gone on with: {once}")
        self.facts = manifest["facts"]
        self.cells = read_journal(self.path / JOURNAL, self._kind, repair=True)
        _check_found(self.path / MANIFEST, manifest, self.cells)

    def write_manifest(self) -> None:
        """Write `study.json`: what was asked, and the facts so far."""
        manifest = {
            "identity": IDENTITY,
            "asked": self.asked,
            "columns": list(self.columns),
            "facts": self.facts,
        }
        write_manifest(self.path / MANIFEST, manifest)

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
        cells = read_journal(self.path / JOURNAL, self._kind)
        done = {_key(cell.setting, self.columns): cell for cell in cells}
        found = (done.get(_key(setting, self.columns)) for setting in order)
        write_whole(self.path / TABLE, _table([cell for cell in found if cell], self.columns))

    def write_finished(self, order: Sequence[Setting]) -> None:
        """Write the table of a study of which nothing is left to measure; and the manifest, if it
        was asked for more that makes no cell (seeds, and nothing is random)."""
        if self._grown:
            self.write_manifest()
        self.write_table(order)

    def close(self) -> None:
        """Let another process have the folder. Without a finished cell nothing stays of it."""
        if not self.cells and not read_journal(self.path / JOURNAL, self._kind):
            self._remove()
        self._lock.close()

    def _remove(self) -> None:
        """Remove what a study that has not one cell wrote, and the folders made for it. Where an
        earlier study's pictures lie, the manifest stays: without one they would be nobody's."""
        for name in (JOURNAL, TABLE, "texts.json"):
            discard(self.path / name)
        if all(file.name == MANIFEST or is_remains(file.name) for file in self.path.iterdir()):
            for name in (MANIFEST, LOCK):
                discard(self.path / name)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


@dataclass(frozen=True)
class StudyRecord:
    """A study as it lies on the disk."""

    path: Path
    kind: str
    asked: Setting
    """Everything that decided the numbers."""
    facts: dict[str, Any]
    """What was found out on the way: entries, unchanged share, notes."""
    cells: pd.DataFrame
    """The setting's columns, then metric, value, stderr, n; one row per cell and metric."""

    @property
    def plain(self) -> str:
        """What training without a mask is called: by what it learns by."""
        return "dpo" if self.asked.get("objective") == "dpo" else "sft"

    def setting(self, name: str, method: str) -> Any:
        """A setting of a method's trainings; None where there is none."""
        own = self.asked.get("settings", {}).get(method, {})
        return own[name] if name in own else self.asked.get(name)


def load_study(folder: str | Path) -> StudyRecord:
    """Read a study folder, finished or not, without torch.

    Raises:
        RecordError: no study there, or one of a format this version does not know.
    """
    import pandas as pd

    path = Path(folder)
    manifest = _read_manifest(path)
    asked, columns = manifest["asked"], manifest["columns"]
    kind = _cell_kind(path / MANIFEST, asked, columns, has_checksums(manifest["format"]))
    table = _read_table(path / TABLE)  # First: what it lists is in the journal by then.
    cells = read_journal(path / JOURNAL, kind)
    _check_found(path / MANIFEST, manifest, cells)
    rows = [
        {**cell.setting, "metric": name, **m._asdict()}
        for cell in _as_in_table(path / TABLE, table, cells, columns)
        for name, m in cell.metrics.items()
    ]
    frame = pd.DataFrame(rows, columns=[*columns, "metric", "value", "stderr", "n"])
    return StudyRecord(path, asked["kind"], asked, manifest["facts"], frame)


def _read_table(file: Path) -> bytes | None:
    try:
        return read_plain(file)
    except OSError:
        return None


def _as_in_table(
    file: Path, raw: bytes | None, cells: list[Cell], columns: Sequence[str]
) -> list[Cell]:
    """Cells in the order of the table: those that ran side by side are journalled as they finish.

    The table says nothing that the journal does not: where it says something else (it was damaged,
    or edited) it is passed over, with a warning, and the next call of its study writes it anew.
    """
    if raw is None:
        return cells
    try:
        text = io.StringIO(raw.decode("utf-8"), newline="")
        rows = [tuple(row[: len(columns)]) for row in csv.reader(text)][1:]
    except (ValueError, csv.Error):
        rows = []
    order: dict[tuple[str, ...], list[int]] = {}
    for place, (row, _) in enumerate(groupby(rows)):
        order.setdefault(row, []).append(place)
    last = {_key(cell.setting, columns): cell for cell in cells}
    places: dict[tuple[str, ...], int] = {}
    for key in last:
        if there := order.get(_row(key)):
            # Settings that differ can look alike in the table.
            places[key] = there.pop(0) if there[1:] else there[0]
    listed = [last[key] for key in sorted(places, key=places.__getitem__)]
    if _table(listed, columns) != raw:
        warnings.warn(
            f"{file}: not the table of its journal (damaged, or edited): passed over; the same "
            "study, asked again, writes it anew",
            stacklevel=3,
        )
        return cells
    in_table = {id(cell) for cell in listed}
    return listed + [cell for cell in cells if id(cell) not in in_table]


def _table(cells: Sequence[Cell], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*columns, "metric", "value", "stderr", "n"])
    for cell in cells:
        setting = _row(_key(cell.setting, columns))
        for name, m in cell.metrics.items():
            rows.writerow([*setting, plain_cell(name), repr(m.value), repr(m.stderr), m.n])
    return text.getvalue().encode()


def _held(path: Path) -> dict[str, Any]:
    """The manifest, of whatever kind."""
    manifest = read_manifest(path, MANIFEST, "study")
    asked = Fields({"kind": NAME})
    parts = Fields({"asked": asked, "facts": Fields(), "columns": Items(NAME, 0, 100)})
    require(path / MANIFEST, manifest, parts)
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with what is asked, the columns and the facts as their kind has them."""
    file, manifest = path / MANIFEST, _held(path)
    asked, facts, known = manifest["asked"], manifest["facts"], kind_of(manifest["asked"])
    if known is not None:
        refuse(file, [*known.asked.faults(asked, "asked")])
        there = Fields(known={**known.facts.known, **known.facts.needed})
        refuse(file, [*there.faults(facts, "facts")])
        refuse(file, [*(known.rule(asked, facts) if known.rule else ())])
    return manifest


def _cell_kind(file: Path, asked: Setting, columns: Sequence[str], sealed: bool = True) -> CellKind:
    known = kind_of(asked)
    if known is not None and tuple(columns) != tuple(known.columns):
        raise RecordError(f"{file}: columns is {[*columns]}, where {[*known.columns]} should be")
    if len({*columns, "metric", "value", "stderr", "n"}) < len(columns) + 4:
        raise RecordError(f"{file}: columns is {[*columns]}, where names that differ should be")
    if known is None:
        return CellKind.any(columns, sealed)
    return CellKind(known.columns, known.metrics, sealed)


def _check_found(file: Path, manifest: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Once a cell is finished, the facts that its kind needs are there."""
    known = kind_of(manifest["asked"])
    if known is not None and cells:
        refuse(file, [*Fields(known.facts.needed).faults(manifest["facts"], "facts")])


def _key(setting: Setting, columns: Sequence[str]) -> tuple[str, ...]:
    """A setting as text: values that look alike are one, whichever type JSON gives them."""
    return tuple("" if setting[name] is None else str(setting[name]) for name in columns)


def _row(key: Sequence[str]) -> tuple[str, ...]:
    """A setting as the table shows it: what differs can look alike there."""
    return tuple(str(plain_cell(part)) for part in key)


def encode_finite(value: Any) -> Any:
    """Any JSON value, with NaN and infinities as None: for output that scripts read."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: encode_finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode_finite(item) for item in value]
    return value
