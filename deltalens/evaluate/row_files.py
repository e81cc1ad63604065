"""The records of a data file, whatever it is written as: JSON lines, a JSON array, either of them
packed with gzip, Parquet, or a folder that a `datasets.Dataset` was saved to."""

from __future__ import annotations

import functools
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from deltalens.errors import DataError

__all__ = ["Record", "name_of", "records"]

Record = tuple[str, Callable[[], Any]]
"""Where it stands ("line 3"), and what reads it or raises a ValueError."""

_FREE, _RATIO = 64 << 20, 100
"""Bytes that any file may unpack to, and beyond them how many times its own size."""
_LONGEST_LINE = 1 << 28
_ROWS_AT_ONCE = 256
_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def name_of(path: Path) -> str:
    """What a file of rows is called: its name without `.jsonl`, `.jsonl.gz`, ...; a folder's own
    name."""
    if path.is_dir():
        return path.name
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def records(path: Path, wanted: Collection[str]) -> Iterator[Record]:
    """The records of a file or folder, read as they are taken.

    What it is written as is seen from its first bytes; its name matters only for Parquet.

    Args:
        path: the file or folder.
        wanted: of a table with columns, those to be read; all where it has none of them.

    Raises:
        DataError: it cannot be read, or unpacks to far more than any data would.
    """
    if path.is_dir():
        yield from _of_folder(path, wanted)
        return
    with _opened(path) as (file, size):
        head = _head(file)
        if path.suffix.lower() == ".parquet" or head.startswith(_PARQUET):
            yield from _of_parquet(path, file, size, wanted)
            return
        for magic, packer in _FOREIGN.items():
            if head.startswith(magic):
                raise DataError(f"{path}: packed with {packer}; unpack it first, or use gzip")
        if head.removeprefix(_BOM).lstrip().startswith(b"["):
            yield from _of_array(path, file.read())
        else:
            yield from _of_lines(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """A file, unpacked where it is packed, and its size on the disk."""
    try:
        size = path.stat().st_size
        with path.open("rb") as plain:
            if plain.peek(2).startswith(_GZIP):
                with gzip.GzipFile(fileobj=plain) as packed:
                    yield io.BufferedReader(_Unpacked(path, packed, size)), size
            else:
                yield plain, size
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Unpacked(io.RawIOBase):
    """What gzip gives, until it gives more than any data would."""

    def __init__(self, path: Path, packed: gzip.GzipFile, size: int) -> None:
        self._path, self._packed, self._size, self._given = path, packed, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        given = self._packed.readinto(buffer)
        self._given += given
        _check_expansion(self._path, self._given, self._size)
        return given


def _check_expansion(path: Path, given: int, size: int) -> None:
    if given > max(_FREE, _RATIO * size):
        raise DataError(
            f"{path}: unpacks to more than {_RATIO} times its {size:,} bytes, which data does not; "
            "if it is data, unpack it first"
        )


def _head(file: io.BufferedReader) -> bytes:
    """The first bytes, which stay there to be read."""
    return file.peek(64)[:64]


def _of_lines(path: Path, file: BinaryIO) -> Iterator[Record]:
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{path}: line {number} is longer than {_LONGEST_LINE >> 20} MiB")
        if line.strip():
            yield f"line {number}", functools.partial(_json, line)


def _of_array(path: Path, raw: bytes) -> Iterator[Record]:
    try:
        found = _json(raw)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    for number, record in enumerate(found, 1):
        yield f"row {number}", functools.partial(_same, record)


def _same(record: Any) -> Any:
    return record


def _json(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error


def _of_parquet(
    path: Path, file: io.BufferedReader, size: int, wanted: Collection[str]
) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _arrow_faults(path, "a Parquet file"):
        table = pq.ParquetFile(file if file.seekable() else pa.BufferReader(file.read()))
        columns = _columns(table.schema_arrow.names, wanted)
        batches = table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
        yield from _of_batches(path, batches, size)


def _of_folder(path: Path, wanted: Collection[str]) -> Iterator[Record]:
    """A `datasets.Dataset`, as `save_to_disk` writes one: Arrow streams, in order."""
    import pyarrow as pa

    state = _object(path / _STATE)
    if state is None:
        splits = (_object(path / _SPLITS) or {}).get("splits")
        if isinstance(splits, list) and splits:
            named = ", ".join(str(path / str(split)) for split in splits)
            raise DataError(f"{path}: a data set with several splits; name one of them: {named}")
        raise DataError(
            f"{path}: a folder, and no data set that `save_to_disk` wrote (it has no {_STATE})"
        )
    if state.get("_indices_data_files"):
        raise DataError(f"{path}: written by `datasets` 1; load it and save it again")
    for file in _streams(path, state):
        with _arrow_faults(file, "an Arrow stream"), pa.memory_map(str(file)) as mapped:
            reader = pa.ipc.open_stream(mapped)
            columns = _columns(state.get("_format_columns") or reader.schema.names, wanted)
            batches = (
                batch.select(columns).slice(start, _ROWS_AT_ONCE)
                for batch in reader
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
            )
            yield from _of_batches(file, batches, file.stat().st_size)


def _streams(path: Path, state: dict[str, Any]) -> list[Path]:
    """The files that a data set's state names: beside it, and nowhere else."""
    try:
        names = [one["filename"] for one in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path / _STATE}: does not say which files hold the rows") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{path / _STATE}: {str(name)[:80]!r} is no file of this folder")
    return [path / name for name in names]


def _object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none."""
    try:
        found = _json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return found if isinstance(found, dict) else None


def _columns(names: Collection[str], wanted: Collection[str]) -> list[str]:
    return [name for name in names if name in wanted] or list(names)


@contextmanager
def _arrow_faults(path: Path, what: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not {what}: {reason}") from error


def _of_batches(path: Path, batches: Iterator[Any], size: int) -> Iterator[Record]:
    import pyarrow as pa

    number = given = 0
    for batch in batches:
        # Damaged offsets would be followed out of the file.
        batch.validate(full=True)
        for column in batch.columns:
            spread = pa.types.is_dictionary(column.type)
            given += (column.dictionary_decode() if spread else column).nbytes
        _check_expansion(path, given, size)
        try:
            found = batch.to_pylist()
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path}: rows from {number + 1} on: {error}") from error
        with_json = {field.name: field.type for field in batch.schema if _holds_json(field.type)}
        for record in found:
            number += 1
            yield f"row {number}", functools.partial(_parsed, record, with_json)


def _parsed(record: dict[str, Any], with_json: dict[str, Any]) -> dict[str, Any]:
    """A record whose values of Arrow's type for JSON are what their text says."""
    return record | {name: _plain(record[name], kind) for name, kind in with_json.items()}


def _is_json(kind: Any) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"


def _holds_json(kind: Any) -> bool:
    inner = (kind.field(place).type for place in range(kind.num_fields))
    return _is_json(kind) or any(map(_holds_json, inner))


def _plain(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if _is_json(kind):
        return _json(value.encode())
    if isinstance(value, dict):
        return {name: _plain(one, kind.field(name).type) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, kind.value_type) for one in value]
    return value
