"""Run folders: what a probe logged of one training, as tables of Parquet parts. No torch here.

`run.json` says what was logged. Each table is a folder of parts; a part is written under a hidden
name and renamed, so that a training killed at any moment leaves tables that read. A clean close
joins the parts of each table into one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import RecordError
from deltalens.io.folders import check_new_folder, remove_empty
from deltalens.io.records.folder import Manifest, RecordFolder
from deltalens.io.records.parquet import Column, read_parquet, write_parquet
from deltalens.io.records.run_tables import TABLES
from deltalens.io.records.schema import COUNT, Fields, Named, Text
from deltalens.io.version import has_checksums

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["RunRecord", "RunWriter", "load_run"]

_FACTS = Fields(known={"tensors": Named(COUNT, Text()), "passed_over": Named(Text(), Text())})
_CLOSED = {"parts": Fields(known=dict.fromkeys(TABLES, COUNT))}
"""How many parts each table has, of a run that was closed."""
RUN = Manifest("run", "run.json", Fields({"asked": Fields(), "facts": _FACTS}, _CLOSED))

_SECONDS = 10.0
"""A part is written when so much time has passed since the last one."""
_ROWS = 1 << 18
"""Or when so many rows have come together."""


class RunWriter(RecordFolder):
    """A run folder open for writing, by one process.

    Args:
        path: a folder that does not exist, or is empty.
        spec: what is logged, as JSON values.
        seconds: how long a row may wait before it is on the disk.

    Raises:
        RecordError: the folder holds another run or something else, or cannot be made.
    """

    manifest = RUN

    def __init__(self, path: Path, spec: Mapping[str, Any], seconds: float | None = None) -> None:
        import pandas  # noqa: F401 - pyarrow would, within the first step
        import pyarrow.parquet  # noqa: F401

        super().__init__(path, spec)
        self._seconds = _SECONDS if seconds is None else seconds
        self._waiting: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
        self._parts = dict.fromkeys(TABLES, 0)
        self._closed = False
        self._flushed = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deltalens-run")
        self._writing: Future[None] | None = None
        self._open()

    def _is_new(self) -> bool:
        if os.path.lexists(self.path / RUN.name):
            raise RecordError(
                f"{self.path}: holds another run; choose another folder, or remove it"
            )
        check_new_folder(self.path, [], locked=True)
        return True

    def _begin(self) -> None:
        for name in TABLES:
            (self.path / name).mkdir()
        self.write_manifest()

    def _said(self) -> dict[str, Any]:
        """Of a run that is closed, how many parts each table has, too: so that none can go missing
        without a word."""
        said: dict[str, Any] = {"asked": self.spec, "facts": self.facts}
        if self._closed:
            said["parts"] = {name: len(_parts(self.path / name)) for name in TABLES}
        return said

    def add(self, table: str, columns: Mapping[str, Any]) -> None:
        """Rows of a table, by column: a list, an array, or for text (codes, words); a missing
        column is null."""
        import pyarrow as pa

        size = len(columns["step"])
        if size:
            arrays = [
                _array(columns.get(name), column.kind, size)
                for name, column in TABLES[table].items()
            ]
            self._waiting[table].append(
                pa.RecordBatch.from_arrays(arrays, names=list(TABLES[table]))
            )

    def flush_if_due(self) -> None:
        """Begin to write parts if rows have waited long enough; a thread does it, while the
        training goes on.

        Raises:
            RecordError: the parts before could not be written: no space left, or the folder is
                gone.
        """
        rows = sum(batch.num_rows for batches in self._waiting.values() for batch in batches)
        if rows < _ROWS and time.monotonic() - self._flushed < self._seconds:
            return
        if self._writing is not None and not self._writing.done():
            return
        self._settle()
        self._writing = self._thread.submit(self._write, self._taken())
        self._flushed = time.monotonic()

    def flush(self) -> None:
        """Write what is waiting as a part of each table, and wait for it.

        Raises:
            RecordError: no space left, or the folder is gone.
        """
        self._settle()
        self._write(self._taken())
        self._flushed = time.monotonic()

    def _settle(self) -> None:
        """Wait for the thread; its error is ours."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _taken(self) -> dict[str, list[pa.RecordBatch]]:
        waiting, self._waiting = self._waiting, {name: [] for name in TABLES}
        return waiting

    def _write(self, waiting: Mapping[str, Sequence[pa.RecordBatch]]) -> None:
        import pyarrow as pa

        for name, batches in waiting.items():
            if batches:
                file = self.path / name / f"part-{self._parts[name]:05d}.parquet"
                write_parquet(file, pa.Table.from_batches(batches))
                self._parts[name] += 1

    def abandon(self) -> None:
        """See `RecordFolder`. Only of a run of which nothing was logged yet."""
        remove_empty(self.path / name for name in TABLES)
        self._thread.shutdown()
        self._remove([RUN.name])

    def close(self) -> None:
        """Write what is waiting, and join each table's parts. Others may write to it then."""
        try:
            self.flush()
            self._thread.shutdown()
            for name, parts in self._parts.items():
                if parts > 1:
                    _compact(self.path, name)
            self._closed = True
            self.write_manifest()
        finally:
            self._let_go()


def _array(value: Any, kind: str, size: int) -> pa.Array:
    import pyarrow as pa

    wanted = pa.dictionary(pa.int32(), pa.string()) if kind == "string" else pa.type_for_alias(kind)
    if value is None:
        return pa.nulls(size, wanted)
    if isinstance(value, tuple):
        return pa.DictionaryArray.from_arrays(*value)
    return pa.array(value, wanted)


def _compact(path: Path, name: str) -> None:
    """Join the parts of a table: a new folder takes the old one's place."""
    folder, fresh, old = path / name, path / f".{name}.new", path / f".{name}.old"
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir()
    write_parquet(fresh / "part-00000.parquet", _joined(_parts(folder), TABLES[name], sealed=True))
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _parts(folder: Path) -> list[Path]:
    """Those that were written to their end."""
    return sorted(part for part in folder.glob("*.parquet") if part.name[0] not in "._")


def _joined(parts: Sequence[Path], columns: Mapping[str, Column], sealed: bool) -> pa.Table:
    import pyarrow as pa

    tables = [read_parquet(part, columns, sealed) for part in parts]
    try:
        return pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    except pa.ArrowException as error:
        raise RecordError(f"{parts[0].parent}: its parts do not go together: {error}") from error


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies on the disk."""

    path: Path
    spec: dict[str, Any]
    """What was logged."""
    facts: dict[str, Any]
    """What was found out: tensors and their entries, steps."""
    histograms: pd.DataFrame
    tensors: pd.DataFrame
    masks: pd.DataFrame
    learned: pd.DataFrame
    """Of masks of weights that the training learned; empty without."""


def load_run(folder: str | Path) -> RunRecord:
    """Read a run folder, finished or not, without torch.

    Raises:
        RecordError: no run there, or one of a format this version does not know.
    """
    path = Path(folder)
    manifest = RUN.read(path)
    sealed = has_checksums(manifest["format"])
    closed = manifest.get("parts", {})
    tables = {name: _read_table(path, name, sealed, closed.get(name)) for name in TABLES}
    return RunRecord(path, manifest["asked"], manifest["facts"], **tables)


def _read_table(path: Path, name: str, sealed: bool, closed: int | None) -> pd.DataFrame:
    import pandas as pd

    folder = path / name
    if not folder.is_dir():
        # Killed while the joined table was about to take the place of its parts.
        folder = path / f".{name}.old"
    parts = _parts(folder)
    if closed is not None and len(parts) != closed:
        raise RecordError(f"{folder}: has {len(parts)} parts, and had {closed} when it was closed")
    if not parts:
        return pd.DataFrame(columns=list(TABLES[name]))
    frame: pd.DataFrame = _joined(parts, TABLES[name], sealed).to_pandas()
    return frame
