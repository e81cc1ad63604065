"""Run folders: what a probe logged of one training, as tables of Parquet parts. No torch here.

`run.json` says what was logged. Each table is a folder of parts; a part is written under a hidden
name and renamed, so that a training killed at any moment leaves tables that read. A clean close
joins the parts of each table into one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import RecordError
from deltalens.io.files import check_new_folder, write_whole, writing_whole
from deltalens.io.manifest import read_manifest
from deltalens.io.version import FORMAT, version

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["RUN", "TABLES", "RunRecord", "RunWriter", "load_run"]

RUN = "run.json"

TABLES: dict[str, dict[str, str]] = {
    "histograms": {
        "step": "int64",
        "tensor": "string",
        "low": "float64",
        "high": "float64",
        "count": "int64",
    },
    "tensors": {
        "step": "int64",
        "tensor": "string",
        "entries": "int64",
        "norm": "float64",
        "mean": "float64",
        "q50": "float64",
        "q90": "float64",
        "q99": "float64",
        "q999": "float64",
        "zeros": "int64",
        "subnormals": "int64",
        "infinities": "int64",
        "nans": "int64",
        "bits_changed": "float64",
        "bf16_changed": "float64",
        "stalled": "float64",
    },
    "masks": {
        "step": "int64",
        "tensor": "string",
        "mask_ratio": "float64",
        "threshold": "float64",
        "kept": "int64",
        "entries": "int64",
        **{
            f"{what}_{against}": "float64"
            for against in ("previous", "first", "reference")
            for what in ("jaccard", "containment", "chance")
        },
        "coverage": "float64",
    },
    "learned": {
        "step": "int64",
        "layer": "string",
        "entries": "int64",
        "kept": "int64",
        **{
            f"{what}_{against}": "float64"
            for against in ("previous", "first")
            for what in ("jaccard", "containment", "chance")
        },
        "flipped_previous": "int64",
        "flipped_first": "int64",
        "ever_kept": "float64",
    },
}
"""Table -> column -> type; `docs/records.md` says what each holds."""

_SECONDS = 10.0
"""A part is written when so much time has passed since the last one."""
_ROWS = 1 << 18
"""Or when so many rows have come together."""


class RunWriter:
    """A run folder open for writing, by one process.

    Args:
        path: a folder that does not exist, or is empty.
        asked: what is logged, as JSON values.
        seconds: how long a row may wait before it is on the disk.

    Raises:
        RecordError: the folder holds another run or something else, or cannot be made.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], seconds: float | None = None) -> None:
        import pandas  # noqa: F401 - pyarrow would, within the first step
        import pyarrow.parquet  # noqa: F401

        if (path / RUN).exists():
            raise RecordError(f"{path}: holds another run; choose another folder, or remove it")
        check_new_folder(path, [])
        self.path, self.asked = path, dict(asked)
        self.facts: dict[str, Any] = {}
        self._seconds = _SECONDS if seconds is None else seconds
        self._waiting: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
        self._parts = dict.fromkeys(TABLES, 0)
        self._flushed = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deltalens-run")
        self._writing: Future[None] | None = None
        try:
            for name in TABLES:
                (path / name).mkdir(parents=True, exist_ok=True)
            self.write_manifest()
        except OSError as error:
            raise RecordError(f"{path}: cannot be written: {error.strerror}") from error

    def write_manifest(self) -> None:
        """Write `run.json`: what was asked, and the facts so far."""
        manifest = {
            "format": FORMAT,
            "deltalens": version(),
            "asked": self.asked,
            "facts": self.facts,
        }
        write_whole(self.path / RUN, (json.dumps(manifest, indent=2) + "\n").encode())

    def add(self, table: str, columns: Mapping[str, Any]) -> None:
        """Rows of a table, by column: a list, an array, or for text (codes, words); a missing
        column is null."""
        import pyarrow as pa

        size = len(columns["step"])
        if size:
            arrays = [_array(columns.get(name), kind, size) for name, kind in TABLES[table].items()]
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
                _write_part(file, pa.Table.from_batches(batches))
                self._parts[name] += 1

    def discard(self) -> None:
        """Remove the run again: it has not begun."""
        for name in TABLES:
            (self.path / name).rmdir()
        (self.path / RUN).unlink()
        self.path.rmdir()

    def close(self) -> None:
        """Write what is waiting, and join each table's parts."""
        self.flush()
        self._thread.shutdown()
        for name, parts in self._parts.items():
            if parts > 1:
                _compact(self.path / name)
        self.write_manifest()


def _array(value: Any, kind: str, size: int) -> pa.Array:
    import pyarrow as pa

    wanted = pa.dictionary(pa.int32(), pa.string()) if kind == "string" else pa.type_for_alias(kind)
    if value is None:
        return pa.nulls(size, wanted)
    if isinstance(value, tuple):
        return pa.DictionaryArray.from_arrays(*value)
    return pa.array(value, wanted)


def _write_part(file: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    with writing_whole(file) as stream:
        pq.write_table(table, stream, compression="zstd")


def _compact(folder: Path) -> None:
    """Join the parts: a new folder takes the old one's place."""
    import pyarrow.parquet as pq

    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir()
    _write_part(fresh / "part-00000.parquet", pq.read_table(folder))
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies on the disk."""

    path: Path
    asked: dict[str, Any]
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
    manifest = read_manifest(path, RUN, "run")
    tables = {name: _read_table(path, name) for name in TABLES}
    return RunRecord(path, manifest["asked"], manifest["facts"], **tables)


def _read_table(path: Path, name: str) -> pd.DataFrame:
    import pandas as pd

    folder = path / name
    if not folder.is_dir():
        # Killed while the joined table was about to take the place of its parts.
        folder = path / f".{name}.old"
    try:
        if not any(folder.glob("*.parquet")):
            return pd.DataFrame(columns=list(TABLES[name]))
        return pd.read_parquet(folder)
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder}: not a table of this run: {error}") from error
