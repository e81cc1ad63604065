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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from deltalens.errors import RecordError
from deltalens.io.files import (
    LOCK,
    append_to,
    check_new_folder,
    discard,
    is_temporary,
    lock_folder,
    read_plain,
    write_whole,
)
from deltalens.io.identity import Union, check_version, united
from deltalens.io.manifest import read_manifest
from deltalens.io.version import FORMAT, IDENTITY, version

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Cell",
    "Measurement",
    "StudyFolder",
    "StudyRecord",
    "check_study_folder",
    "encode_finite",
    "load_study",
]

MANIFEST, JOURNAL, TABLE = "study.json", "cells.jsonl", "cells.csv"

Setting = dict[str, Any]


class Measurement(NamedTuple):
    """One number, and how sure it is."""

    value: float
    stderr: float = math.nan
    """Standard error of the value; NaN where none is known."""
    n: int = 0
    """Over how many examples or sequences; 0 where that has no meaning."""


@dataclass(frozen=True)
class Cell:
    """One finished point of a study."""

    setting: Setting
    metrics: dict[str, Measurement]
    seconds: float
    """Wall time of the cell: edit and evaluation."""


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
        held = _read_manifest(path)["asked"]["kind"] if kind else None
        if held != kind:
            raise RecordError(f"{path}: holds a {held}; choose another folder")
        return
    try:
        if path.is_dir() and all(_remains(file.name) for file in path.iterdir()):
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
        asked = json.loads(json.dumps({"kind": kind, **asked}))
        made = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
        begun = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            others = [file.name for file in path.iterdir() if not _remains(file.name)]
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
        headline = f"{self.path} holds another study (use another folder, or --fresh):"
        self.asked = united(headline, manifest["asked"], self.asked, axes)
        self._grown = self.asked != manifest["asked"]
        if once is not None:
            raise RecordError(f"{self.path} cannot be gone on with: {once}")
        self.facts = manifest["facts"]
        self.cells = _read_journal(self.path, repair=True)

    def write_manifest(self) -> None:
        """Write `study.json`: what was asked, and the facts so far."""
        manifest = {
            "format": FORMAT,
            "deltalens": version(),
            "identity": IDENTITY,
            "asked": self.asked,
            "columns": list(self.columns),
            "facts": self.facts,
        }
        write_whole(self.path / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())

    def append(self, cell: Cell) -> None:
        """Journal a finished cell; it is on the disk when this returns."""
        self.extend([cell])

    def extend(self, cells: Sequence[Cell]) -> None:
        """Journal cells that were finished together."""
        lines = [
            json.dumps(
                {
                    "setting": cell.setting,
                    "metrics": {name: [_encode(x) for x in m] for name, m in cell.metrics.items()},
                    "seconds": round(cell.seconds, 4),
                }
            )
            + "\n"
            for cell in cells
        ]
        append_to(self.path / JOURNAL, "".join(lines).encode())
        self.cells += cells

    def write_table(self, order: Sequence[Setting]) -> None:
        """Write `cells.csv` from the journal: a row per cell and metric, cells in this order. It
        repeats byte for byte whenever the numbers do."""
        done = {_key(cell.setting): cell for cell in _read_journal(self.path, repair=False)}
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*self.columns, "metric", "value", "stderr", "n"])
        for setting in order:
            cell = done.get(_key(setting))
            for name, m in cell.metrics.items() if cell else ():
                setting_values = [setting[column] for column in self.columns]
                rows.writerow([*setting_values, name, repr(m.value), repr(m.stderr), m.n])
        write_whole(self.path / TABLE, text.getvalue().encode())

    def write_finished(self, order: Sequence[Setting]) -> None:
        """Write the table of a study of which nothing is left to measure; and the manifest, if it
        was asked for more that makes no cell (seeds, and nothing is random)."""
        if self._grown:
            self.write_manifest()
        self.write_table(order)

    def close(self) -> None:
        """Let another process have the folder. Without a finished cell nothing stays of it."""
        if not self.cells and not _read_journal(self.path, repair=False):
            self._remove()
        self._lock.close()

    def _remove(self) -> None:
        """Remove what a study that has not one cell wrote, and the folders made for it. Where an
        earlier study's pictures lie, the manifest stays: without one they would be nobody's."""
        for name in (JOURNAL, TABLE, "texts.json"):
            discard(self.path / name)
        if all(file.name == MANIFEST or _remains(file.name) for file in self.path.iterdir()):
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
    columns = manifest["columns"]
    order = _table_order(path / TABLE, columns)
    cells = sorted(
        _read_journal(path, repair=False),
        key=lambda cell: order.get(tuple(str(cell.setting.get(c)) for c in columns), len(order)),
    )
    rows = [
        {**{c: cell.setting.get(c) for c in columns}, "metric": name, **m._asdict()}
        for cell in cells
        for name, m in cell.metrics.items()
    ]
    frame = pd.DataFrame(rows, columns=[*columns, "metric", "value", "stderr", "n"])
    asked = manifest["asked"]
    return StudyRecord(path, asked["kind"], asked, manifest["facts"], frame)


def _table_order(table: Path, columns: Sequence[str]) -> dict[tuple[str, ...], int]:
    """The place of each setting in the table: cells that ran side by side are journalled as they
    finish. Nothing where there is no table yet."""
    try:
        text = read_plain(table).decode("utf-8")
    except OSError:
        return {}
    lines = csv.DictReader(io.StringIO(text, newline=""))
    rows = [tuple(row.get(c, "") for c in columns) for row in lines]
    return {row: place for place, row in enumerate(dict.fromkeys(rows))}


def _remains(name: str) -> bool:
    """Whether a file is what a study leaves that was killed before it had a manifest."""
    return name == LOCK or is_temporary(name)


def _read_manifest(path: Path) -> dict[str, Any]:
    file, manifest = path / MANIFEST, read_manifest(path, MANIFEST, "study")
    if not (
        isinstance(manifest.get("asked"), dict)
        and isinstance(manifest["asked"].get("kind"), str)
        and isinstance(manifest.get("facts"), dict)
        and isinstance(manifest.get("columns"), list)
    ):
        raise RecordError(f"{file}: not a study's manifest")
    return manifest


def _read_journal(path: Path, repair: bool) -> list[Cell]:
    """The finished cells. A torn last line (a crash while it was written) does not count, and is
    cut off before anything is appended."""
    file = path / JOURNAL
    try:
        raw = read_plain(file)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
    whole = raw[: raw.rfind(b"\n") + 1]
    if repair and len(whole) < len(raw):
        os.truncate(file, len(whole))
    cells = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            fields = json.loads(line)
            metrics = {name: _decode(m) for name, m in fields["metrics"].items()}
            cells.append(Cell(dict(fields["setting"]), metrics, float(fields["seconds"])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(
                f"{file}, line {number}: not a journal line ({error}); begin the study anew (fresh)"
            ) from error
    return cells


def _key(setting: Setting) -> str:
    return json.dumps(setting, sort_keys=True)


def _encode(number: float) -> float | str:
    """JSON has no NaN and no infinity: as text."""
    return number if math.isfinite(number) else str(number)


def _decode(numbers: list[Any]) -> Measurement:
    value, stderr, n = numbers
    return Measurement(float(value), float(stderr), int(n))


def encode_finite(value: Any) -> Any:
    """Any JSON value, with NaN and infinities as None: for output that scripts read."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: encode_finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode_finite(item) for item in value]
    return value
