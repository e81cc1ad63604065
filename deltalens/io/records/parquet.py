"""Parquet files with a checksum over all of their bytes. No torch here.

Parquet's own checksums (which are written as well, for other readers) cover only the pages: a
flipped bit in the footer can rename a column. Our checksum is stored between the pages and the
footer, where readers of Parquet do not look.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deltalens.errors import RecordError, describe_error
from deltalens.io.checksum import checksum
from deltalens.io.files import read_plain, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Column", "read_parquet", "write_parquet"]

_MARK = b"deltalens:"
_SEAL = len(_MARK) + 32


class Column(NamedTuple):
    """What a column of a table must contain."""

    kind: str
    """`int64`, `float64` or `string`."""
    least: float | None = None
    """Smallest number allowed; None: numbers are not bounded."""
    most: float | None = None
    """Largest number allowed."""
    gaps: bool = False
    """Whether values may be missing."""
    nan: bool = True
    """Whether numbers may be NaN."""


def write_parquet(file: Path, table: pa.Table) -> None:
    """Write a table as a Parquet file, whole or not at all.

    Args:
        file: the path.
        table: the table.

    Raises:
        DeltaLensError: the disk is full, or the folder is not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="zstd", write_page_checksum=True)
    raw = out.getvalue().to_pybytes()
    end = _footer(raw)
    write_whole(file, raw[:end] + _MARK + checksum(raw).encode() + raw[end:])


def _footer(raw: bytes) -> int:
    """The offset of a Parquet file's footer; negative if the file is damaged."""
    return len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")


def read_parquet(file: Path, columns: Mapping[str, Column], sealed: bool) -> pa.Table:
    """Read a file that `write_parquet` wrote.

    Args:
        file: the path.
        columns: the columns that it must have; further columns are not checked.
        sealed: whether it must have a checksum. Files of earlier versions have none.

    Returns:
        The table.

    Raises:
        RecordError: the file is damaged, or does not have these columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        raw = read_plain(file)
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
    if sealed:
        _check_seal(file, raw)
    try:
        table = pq.read_table(pa.BufferReader(raw), page_checksum_verification=True)
        table.validate(full=True)
    except Exception as error:  # Arrow raises many kinds on damage.
        raise RecordError(f"{file}: damaged: {describe_error(error)}") from error
    _check_columns(file, table, columns)
    return table


def _check_seal(file: Path, raw: bytes) -> None:
    end = _footer(raw)
    seal = raw[max(0, end - _SEAL) : max(0, end)]
    if not seal.startswith(_MARK) or seal != _MARK + _checksum_without(raw, end):
        raise RecordError(f"{file}: damaged: its checksum does not match its content")


def _checksum_without(raw: bytes, end: int) -> bytes:
    return checksum(raw[: end - _SEAL] + raw[end:]).encode()


def _check_columns(file: Path, table: pa.Table, columns: Mapping[str, Column]) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in columns.items():
        if table.column_names.count(name) != 1:
            raise RecordError(f"{file}: column {name!r} is missing, or occurs more than once")
        values = table[name]
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if kind != pa.type_for_alias(column.kind):
            raise RecordError(f"{file}: column {name!r} has type {kind}; expected {column.kind}")
        if values.null_count and not column.gaps:
            raise RecordError(f"{file}: column {name!r} has missing values")
        if column.least is None or not len(values):
            continue
        outside, bounds = pc.less(values, column.least), f"at least {column.least:g}"
        if column.most is not None:
            outside = pc.or_(outside, pc.greater(values, column.most))
            bounds += f", at most {column.most:g}"
        if not column.nan:
            outside = pc.or_(outside, pc.is_nan(values))
        if pc.any(outside).as_py():
            raise RecordError(f"{file}: column {name!r} has a value that is not {bounds}")
