"""Rows of tables: Parquet, and the Arrow streams that a `datasets.Dataset` is saved as.

A few bytes of either can stand for gigabytes: a value is stored once and meant a million times, or
packed. What it comes to is counted before it is made.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import DataError, describe_error, errors_from
from deltalens.io.files import open_input
from deltalens.scoring.arrow_sizes import is_packed, spread
from deltalens.scoring.parquet_footer import ColumnSize, column_sizes
from deltalens.scoring.row_values import FREE, Record, check_expansion, parse_json

__all__ = ["of_folder", "of_parquet"]

_ROWS_AT_ONCE = 256
_AN_INDEX = 4
"""Bytes that a value of a list takes at least."""
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def of_parquet(
    path: Path, file: io.BufferedReader, size: int, wanted: Collection[str]
) -> Iterator[Record]:
    """The rows of a Parquet file, in order, read piece by piece.

    Args:
        path: its name, for messages.
        file: open.
        size: bytes on the disk, against which is held what it comes to.
        wanted: the fields that may be asked for; other columns are not read.

    Raises:
        DataError: it is damaged, or comes to far more than its size.
    """
    import pyarrow.parquet as pq

    with _arrow_faults(path, "a Parquet file"):
        source = file if file.seekable() else io.BytesIO(file.read())
        plain = pq.ParquetFile(source)
        sizes = _sizes(path, source)
        leaves = [plain.schema.column(place) for place in range(len(plain.schema))]
        # A text that is stored once stays so in memory, however many rows mean it.
        once = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        table = pq.ParquetFile(source, metadata=plain.metadata, read_dictionary=once)
        columns = _columns(table.schema_arrow.names, wanted)
        batches = (
            batch
            for group, held in enumerate(sizes[: table.num_row_groups])
            if _check_group(path, held, leaves, columns, size)
            for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns)
        )
        yield from _of_batches(path, batches, size)


def _sizes(path: Path, source: io.BufferedIOBase) -> list[list[ColumnSize]]:
    try:
        return column_sizes(source)
    except ValueError as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error


def _check_group(
    path: Path,
    group: Sequence[ColumnSize],
    leaves: Sequence[Any],
    columns: Collection[str],
    size: int,
) -> bool:
    """Refuse a group of rows of which one column comes to far more than the file; else true."""
    for held, leaf in zip(group, leaves, strict=True):
        if leaf.path.partition(".")[0] in columns:
            # A list's values, many of which can be meant by a few bytes, are made all at once.
            listed = _AN_INDEX * held.values if leaf.max_repetition_level else 0
            check_expansion(path, max(held.unpacked, listed), size)
    return True


def of_folder(path: Path, wanted: Collection[str]) -> Iterator[Record]:
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
    chosen = state.get("_format_columns") or None
    if not (chosen is None or (isinstance(chosen, list) and all(map(_is_text, chosen)))):
        raise DataError(f"{path / _STATE}: _format_columns is no list of names")
    for file in _streams(path, state):
        if file.exists() and not file.is_file():
            raise DataError(f"{file}: a folder, pipe or device where a file of rows should be")
        with _arrow_faults(file, "an Arrow stream"), pa.memory_map(str(file)) as mapped:
            _check_plain(file, mapped)
            reader = pa.ipc.open_stream(mapped)
            there = reader.schema.names
            columns = _columns(there if chosen is None else _held(file, chosen, there), wanted)
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
        with open_input(path) as stream:
            found = parse_json(stream.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return found if isinstance(found, dict) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _held(file: Path, named: list[str], there: list[str]) -> list[str]:
    """The columns that a data set's state names, all of which its files have."""
    missing = [name for name in named if name not in there]
    if missing:
        raise DataError(f"{file}: has no column {missing[0][:80]!r}, which {_STATE} names")
    return named


def _columns(names: Collection[str], wanted: Collection[str]) -> list[str]:
    return [name for name in names if name in wanted] or list(names)


def _arrow_faults(path: Path, what: str) -> errors_from:
    return errors_from("Arrow", f"{path}: not {what}", kind=DataError)


def _check_plain(file: Path, mapped: Any) -> None:
    """Refuse a stream whose batches are packed: each is unpacked whole, to what only it knows.
    `datasets` packs none."""
    import pyarrow as pa

    for message in pa.ipc.MessageReader.open_stream(mapped):
        try:
            packed = is_packed(message.metadata.to_pybytes())
        except (struct.error, IndexError) as error:
            raise DataError(f"{file}: not an Arrow stream: a message is cut short") from error
        if packed:
            raise DataError(f"{file}: its batches are packed; save it without compression")
    mapped.seek(0)


def _of_batches(path: Path, batches: Iterator[Any], size: int) -> Iterator[Record]:
    number = given = 0
    for batch in batches:
        # Damaged offsets would be followed out of the file.
        batch.validate(full=True)
        comes_to = sum(spread(path, column) for column in batch.columns)
        given += comes_to
        check_expansion(path, given, size)
        with_json = {field.name: field.type for field in batch.schema if _holds_json(field.type)}
        # Where rows are large, few are made at once.
        step = max(1, batch.num_rows * FREE // max(FREE, comes_to))
        for start in range(0, batch.num_rows, step):
            try:
                found = batch.slice(start, step).to_pylist()
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{path}: rows from {number + 1} on: {describe_error(error)}"
                ) from error
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
        return parse_json(value.encode())
    if isinstance(value, dict):
        return {name: _plain(one, kind.field(name).type) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, kind.value_type) for one in value]
    return value
