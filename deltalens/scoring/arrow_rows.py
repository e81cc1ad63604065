"""Rows of Parquet files, and of the Arrow streams that a `datasets.Dataset` is saved as.

A few bytes of either can stand for gigabytes: values may be compressed, or stored once and repeated
a million times. The expanded size is therefore computed before anything is expanded.
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
from deltalens.scoring.arrow_sizes import expanded_size, is_compressed
from deltalens.scoring.parquet_footer import ColumnSize, column_sizes
from deltalens.scoring.row_values import ALWAYS_ALLOWED, Record, check_expansion, parse_json

__all__ = ["dataset_rows", "parquet_rows"]

_ROWS_AT_ONCE = 256
_INDEX_BYTES = 4
"""Bytes that a value of a list takes at least."""
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def parquet_rows(
    path: Path, file: io.BufferedReader, size: int, wanted: Collection[str]
) -> Iterator[Record]:
    """Read the rows of a Parquet file, piece by piece.

    Args:
        path: the file's name, for messages.
        file: the open file.
        size: its size on the disk, in bytes; its expanded size is limited to a multiple of it.
        wanted: fields that may be used; other columns are not read.

    Yields:
        The rows, in order.

    Raises:
        DataError: the file is damaged, or expands to far more than its size.
    """
    import pyarrow.parquet as pq

    with _arrow_faults(path, "a Parquet file"):
        source = file if file.seekable() else io.BytesIO(file.read())
        footer = pq.ParquetFile(source)
        sizes = _sizes(path, source)
        leaves = [footer.schema.column(index) for index in range(len(footer.schema))]
        # As dictionaries, repeated texts take memory only once.
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        table = pq.ParquetFile(source, metadata=footer.metadata, read_dictionary=texts)
        columns = _columns(table.schema_arrow.names, wanted)
        batches = (
            batch
            for group, column_sizes in enumerate(sizes[: table.num_row_groups])
            if _check_group(path, column_sizes, leaves, columns, size)
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
    """Refuse a row group in which one column expands to far more than the file; otherwise true."""
    for column, leaf in zip(group, leaves, strict=True):
        if leaf.path.partition(".")[0] in columns:
            # All values of a list are expanded at once, and a few bytes can stand for many.
            list_bytes = _INDEX_BYTES * column.values if leaf.max_repetition_level else 0
            check_expansion(path, max(column.uncompressed, list_bytes), size)
    return True


def dataset_rows(path: Path, wanted: Collection[str]) -> Iterator[Record]:
    """Read the rows of a `datasets.Dataset` that `save_to_disk` wrote.

    Args:
        path: its folder.
        wanted: fields that may be used; other columns are not read.

    Yields:
        The rows, in order.

    Raises:
        DataError: the folder is not a data set, is damaged, or expands to far more than its size.
    """
    import pyarrow as pa

    state = _json_object(path / _STATE)
    if state is None:
        splits = (_json_object(path / _SPLITS) or {}).get("splits")
        if isinstance(splits, list) and splits:
            paths = ", ".join(str(path / str(split)) for split in splits)
            raise DataError(f"{path}: a data set with several splits; name one of them: {paths}")
        raise DataError(
            f"{path}: a folder, but not a data set that `save_to_disk` wrote (it has no {_STATE})"
        )
    if state.get("_indices_data_files"):
        raise DataError(f"{path}: written by `datasets` 1; load it and save it again")
    chosen = state.get("_format_columns") or None
    if not (chosen is None or (isinstance(chosen, list) and all(map(_is_text, chosen)))):
        raise DataError(f"{path / _STATE}: _format_columns is not a list of names")
    for file in _streams(path, state):
        if file.exists() and not file.is_file():
            raise DataError(f"{file}: expected a file of rows, got a folder, pipe or device")
        with _arrow_faults(file, "an Arrow stream"), pa.memory_map(str(file)) as mapped:
            _check_uncompressed(file, mapped)
            reader = pa.ipc.open_stream(mapped)
            names = reader.schema.names
            columns = _columns(names if chosen is None else _existing(file, chosen, names), wanted)
            batches = (
                batch.select(columns).slice(start, _ROWS_AT_ONCE)
                for batch in reader
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
            )
            yield from _of_batches(file, batches, file.stat().st_size)


def _streams(path: Path, state: dict[str, Any]) -> list[Path]:
    """The files that a data set's state names; they must be in its folder."""
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path / _STATE}: does not say which files hold the rows") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{path / _STATE}: {str(name)[:80]!r} is not a file of this folder")
    return [path / name for name in names]


def _json_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file, or no object in it."""
    try:
        with open_input(path) as stream:
            content = parse_json(stream.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return content if isinstance(content, dict) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _existing(file: Path, chosen: list[str], names: list[str]) -> list[str]:
    """The columns that a data set's state names, after checking that the file has them."""
    missing = [name for name in chosen if name not in names]
    if missing:
        raise DataError(f"{file}: has no column {missing[0][:80]!r}, which {_STATE} names")
    return chosen


def _columns(names: Collection[str], wanted: Collection[str]) -> list[str]:
    return [name for name in names if name in wanted] or list(names)


def _arrow_faults(path: Path, what: str) -> errors_from:
    return errors_from("Arrow", f"{path}: not {what}", kind=DataError)


def _check_uncompressed(file: Path, mapped: Any) -> None:
    """Refuse a stream of compressed batches: only decompressing a whole batch would tell its size.
    `datasets` does not compress."""
    import pyarrow as pa

    for message in pa.ipc.MessageReader.open_stream(mapped):
        try:
            compressed = is_compressed(message.metadata.to_pybytes())
        except (struct.error, IndexError) as error:
            raise DataError(f"{file}: not an Arrow stream: a message is cut short") from error
        if compressed:
            raise DataError(f"{file}: its batches are compressed; save it without compression")
    mapped.seek(0)


def _of_batches(path: Path, batches: Iterator[Any], size: int) -> Iterator[Record]:
    number = total = 0
    for batch in batches:
        # Damaged offsets would be followed out of the file.
        batch.validate(full=True)
        expanded = sum(expanded_size(path, column) for column in batch.columns)
        total += expanded
        check_expansion(path, total, size)
        json_types = {field.name: field.type for field in batch.schema if _has_json(field.type)}
        # Large rows are converted a few at a time.
        step = max(1, batch.num_rows * ALWAYS_ALLOWED // max(ALWAYS_ALLOWED, expanded))
        for start in range(0, batch.num_rows, step):
            try:
                records = batch.slice(start, step).to_pylist()
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{path}: rows from {number + 1} on: {describe_error(error)}"
                ) from error
            for record in records:
                number += 1
                yield f"row {number}", functools.partial(_with_parsed_json, record, json_types)


def _with_parsed_json(record: dict[str, Any], json_types: dict[str, Any]) -> dict[str, Any]:
    """The record, with values of Arrow's JSON type parsed."""
    return record | {name: _parse(record[name], kind) for name, kind in json_types.items()}


def _is_json(kind: Any) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"


def _has_json(kind: Any) -> bool:
    inner = (kind.field(index).type for index in range(kind.num_fields))
    return _is_json(kind) or any(map(_has_json, inner))


def _parse(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if _is_json(kind):
        return parse_json(value.encode())
    if isinstance(value, dict):
        return {name: _parse(item, kind.field(name).type) for name, item in value.items()}
    if isinstance(value, list):
        return [_parse(item, kind.value_type) for item in value]
    return value
