"""Run folders: what a probe logged during one training, as tables of Parquet parts. No torch here.

`run.json` describes what was logged. Each table is a folder of parts. A part is written under a
hidden name and renamed, so that a training that is killed leaves readable tables. Closing the run
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
from deltalens.io.escaping import short_path
from deltalens.io.folders import check_new_folder, remove_empty
from deltalens.io.records.folder import Manifest, RecordFolder
from deltalens.io.records.parquet import Column, read_parquet, write_parquet
from deltalens.io.records.run_tables import TABLES
from deltalens.io.records.schema import COUNT, Fields, Named, Text
from deltalens.io.version import has_checksums

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["PART_SECONDS", "RunRecord", "RunWriter", "is_run", "load_run"]

_FACTS = Fields(known={"tensors": Named(COUNT, Text()), "passed_over": Named(Text(), Text())})
_CLOSED = {"parts": Fields(known=dict.fromkeys(TABLES, COUNT))}
"""Number of parts of each table, in a run that was closed."""
RUN = Manifest("run", "run.json", Fields({"asked": Fields(), "facts": _FACTS}, _CLOSED))

PART_SECONDS = 10.0
"""Time after which the next part is written, ..."""
_ROWS = 1 << 18
"""... or number of rows at which it is written earlier."""


class RunWriter(RecordFolder):
    """A run folder that is open for writing, by one process.

    Args:
        path: a folder that does not exist, or is empty.
        spec: what is logged, as JSON values.
        seconds: how long rows may be held in memory before they are written; the default is 10.

    Raises:
        DeltaLensError: the folder contains another run or something else, or cannot be created.
    """

    manifest = RUN

    def __init__(self, path: Path, spec: Mapping[str, Any], seconds: float | None = None) -> None:
        import pandas  # noqa: F401 - pyarrow would import it during the first step
        import pyarrow.parquet  # noqa: F401

        super().__init__(path, spec)
        self._seconds = PART_SECONDS if seconds is None else seconds
        self._pending: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
        self._parts = dict.fromkeys(TABLES, 0)
        self._closed = False
        self._flushed = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deltalens-run")
        self._writing: Future[None] | None = None
        self._open()

    def _is_new(self) -> bool:
        if os.path.lexists(self.path / RUN.name):
            raise RecordError(
                f"{self.path}: contains another run; choose another folder, or remove this one"
            )
        check_new_folder(self.path, [], locked=True)
        return True

    def _start(self) -> None:
        for name in TABLES:
            (self.path / name).mkdir()
        self.write_manifest()

    def _manifest_fields(self) -> dict[str, Any]:
        """The content of the manifest. Once the run is closed it includes the number of parts of
        each table, so that a missing part is noticed."""
        fields: dict[str, Any] = {"asked": self.spec, "facts": self.facts}
        if self._closed:
            fields["parts"] = {name: len(_parts(self.path / name)) for name in TABLES}
        return fields

    def add(self, table: str, columns: Mapping[str, Any]) -> None:
        """Add rows to a table; they are written later.

        Args:
            table: its name (a key of `run_tables.TABLES`).
            columns: values by column, `step` among them: a list, an array or, for text, a pair of
                codes and words. A column that is left out is null.
        """
        import pyarrow as pa

        size = len(columns["step"])
        if size:
            arrays = [
                _array(columns.get(name), column.kind, size)
                for name, column in TABLES[table].items()
            ]
            self._pending[table].append(
                pa.RecordBatch.from_arrays(arrays, names=list(TABLES[table]))
            )

    def flush_if_due(self) -> None:
        """Start writing parts, in a thread, if rows have been held long enough.

        Raises:
            DeltaLensError: the previous parts could not be written: no space left, or the folder
                is gone.
        """
        rows = sum(batch.num_rows for batches in self._pending.values() for batch in batches)
        if rows < _ROWS and time.monotonic() - self._flushed < self._seconds:
            return
        if self._writing is not None and not self._writing.done():
            return
        self._wait_for_thread()
        self._writing = self._thread.submit(self._write, self._take_pending())
        self._flushed = time.monotonic()

    def flush(self) -> None:
        """Write all rows that are held in memory, as a part of each table.

        Raises:
            DeltaLensError: no space left, or the folder is gone.
        """
        self._wait_for_thread()
        self._write(self._take_pending())
        self._flushed = time.monotonic()

    def _wait_for_thread(self) -> None:
        """Wait until the thread has written its parts; an error in it is raised here."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _take_pending(self) -> dict[str, list[pa.RecordBatch]]:
        pending, self._pending = self._pending, {name: [] for name in TABLES}
        return pending

    def _write(self, pending: Mapping[str, Sequence[pa.RecordBatch]]) -> None:
        import pyarrow as pa

        for name, batches in pending.items():
            if batches:
                file = self.path / name / f"part-{self._parts[name]:05d}.parquet"
                write_parquet(file, pa.Table.from_batches(batches))
                self._parts[name] += 1

    def abandon(self) -> None:
        """See `RecordFolder.abandon`; only before anything was logged."""
        remove_empty(self.path / name for name in TABLES)
        self._thread.shutdown()
        self._remove([RUN.name])

    def close(self) -> None:
        """Write all pending rows, join the parts of each table, and unlock the folder.

        Raises:
            DeltaLensError: no space left, or the folder is gone.
        """
        try:
            self.flush()
            self._thread.shutdown()
            for name, parts in self._parts.items():
                if parts > 1:
                    _compact(self.path, name)
            self._closed = True
            self.write_manifest()
        finally:
            self._release()


def _array(value: Any, kind: str, size: int) -> pa.Array:
    import pyarrow as pa

    dtype = pa.dictionary(pa.int32(), pa.string()) if kind == "string" else pa.type_for_alias(kind)
    if value is None:
        return pa.nulls(size, dtype)
    if isinstance(value, tuple):
        return pa.DictionaryArray.from_arrays(*value)
    return pa.array(value, dtype)


def _compact(path: Path, name: str) -> None:
    """Join the parts of a table in a new folder, which then replaces the old one."""
    folder, new, old = path / name, path / f".{name}.new", path / f".{name}.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    write_parquet(new / "part-00000.parquet", _joined(_parts(folder), TABLES[name], sealed=True))
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _parts(folder: Path) -> list[Path]:
    """The parts of a table that were completely written."""
    return sorted(part for part in folder.glob("*.parquet") if part.name[0] not in "._")


def _joined(parts: Sequence[Path], columns: Mapping[str, Column], sealed: bool) -> pa.Table:
    import pyarrow as pa

    tables = [read_parquet(part, columns, sealed) for part in parts]
    try:
        return pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    except pa.ArrowException as error:
        raise RecordError(f"{parts[0].parent}: its parts do not match: {error}") from error


@dataclass(frozen=True, repr=False)
class RunRecord:
    """A probe's run, read from its folder. `docs/records.md` describes the columns."""

    path: Path
    spec: dict[str, Any]
    """What was logged: the probe's settings."""
    facts: dict[str, Any]
    """What the probe found out: tensors and their numbers of entries, steps."""
    histograms: pd.DataFrame
    """Histograms of gradient magnitudes: a row per step, tensor and occupied bin."""
    tensors: pd.DataFrame
    """Statistics of gradients and updates: a row per step and tensor."""
    masks: pd.DataFrame
    """Gradient masks: a row per step, tensor and mask ratio."""
    learned: pd.DataFrame
    """Weight masks that the training learns: a row per step and layer; empty if it learns none."""
    closed: bool = True
    """Whether the probe closed it; if not, its training goes on, or was killed."""

    def __repr__(self) -> str:
        steps = self.tensors["step"].nunique()
        return (
            f"<{type(self).__name__} {short_path(self.path)}: {steps:,} logged steps of "
            f"{self.tensors['tensor'].nunique():,} tensors; "
            f"{', '.join(f'{len(getattr(self, name)):,} rows in {name}' for name in TABLES)}>"
        )


def is_run(folder: str | Path) -> bool:
    """Tell whether a folder is a probe's run.

    Args:
        folder: any path.

    Returns:
        Whether it has a run's manifest.
    """
    return Path(folder, RUN.name).is_file()


def load_run(folder: str | Path) -> RunRecord:
    """Read a probe's run, complete or not. torch is not imported.

    Args:
        folder: the run's folder.

    Returns:
        Settings, facts and tables (pandas DataFrames).

    Raises:
        RecordError: the folder is not a run, is damaged, or has a format that this version does not
            know.

    Example:
        >>> run = load_run("run")
        >>> list(run.histograms.columns)
        ['step', 'tensor', 'low', 'high', 'count']
        >>> len(run.tensors) > 0
        True
    """
    path = Path(folder)
    manifest = RUN.read(path)
    sealed = has_checksums(manifest["format"])
    closed = manifest.get("parts", {})
    tables = {name: _read_table(path, name, sealed, closed.get(name)) for name in TABLES}
    facts = manifest["facts"]
    return RunRecord(path, manifest["asked"], facts, **tables, closed="parts" in manifest)


def _read_table(path: Path, name: str, sealed: bool, closed: int | None) -> pd.DataFrame:
    import pandas as pd

    folder = path / name
    if not folder.is_dir():
        # The process was killed between the two renames in `_compact`.
        folder = path / f".{name}.old"
    parts = _parts(folder)
    if closed is not None and len(parts) != closed:
        raise RecordError(
            f"{folder}: has {len(parts)} parts, but had {closed} when the run was closed"
        )
    if not parts:
        return pd.DataFrame(columns=list(TABLES[name]))
    frame: pd.DataFrame = _joined(parts, TABLES[name], sealed).to_pandas()
    return frame
