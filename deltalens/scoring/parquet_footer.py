"""The sizes of columns according to the footer of a Parquet file, read without Arrow.

If a footer contradicts itself, Arrow's access to a column's metadata (`RowGroupMetaData.column`)
ends the process with a C++ exception that Python cannot catch. This module parses Thrift's compact
protocol, and extracts the two numbers that are needed.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

__all__ = ["ColumnSize", "column_sizes"]

_MAGIC = b"PAR1"
_DEEPEST = 32
_ROW_GROUPS, _COLUMNS, _META_DATA, _VALUES, _UNCOMPRESSED = 4, 1, 3, 5, 6
"""Numbers of fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData."""


class ColumnSize(NamedTuple):
    """The size of one column in one row group."""

    values: int
    uncompressed: int
    """Bytes of its pages before compression."""


def column_sizes(file: io.BufferedIOBase) -> list[list[ColumnSize]]:
    """Read the sizes of all columns.

    Args:
        file: the open Parquet file.

    Returns:
        For each row group, its columns in the order of the schema's leaves.

    Raises:
        ValueError: the footer is damaged.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > end - 8:
        raise ValueError("no footer at its end")
    file.seek(end - 8 - length)
    try:
        footer = _Compact(file.read(length)).struct(0)
        return [
            [
                ColumnSize(column[_META_DATA][_VALUES], column[_META_DATA][_UNCOMPRESSED])
                for column in group[_COLUMNS]
            ]
            for group in footer[_ROW_GROUPS]
        ]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"its footer is damaged ({type(error).__name__})") from error


class _Compact:
    """A parser of Thrift's compact protocol. Every value takes at least one byte, which bounds the
    size of the result."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = content, 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Parse a struct, and return its fields by number."""
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            # Kinds 1 and 2 are true and false, without a value of their own.
            fields[number] = kind & 15 if kind & 15 in (1, 2) else self._value(kind & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == 11 and (count := self._varint()):
            kinds = self._byte()
            for _ in range(count):
                self._value(kinds >> 4, depth + 1)
                self._value(kinds & 15, depth + 1)
        if kind == 12:
            return self.struct(depth + 1)
        if kind != 11:
            raise ValueError(f"its footer has a value of kind {kind}")
        return None

    def _byte(self) -> int:
        self._position += 1
        return self._content[self._position - 1]

    def _bytes(self, count: int) -> bytes:
        self._position += count
        if self._position > len(self._content):
            raise IndexError(count)
        return self._content[self._position - count : self._position]

    def _varint(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 128:
            number |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("its footer has a number of more than 64 bits")
        return number | byte << shift

    def _integer(self) -> int:
        zigzag = self._varint()
        return zigzag >> 1 ^ -(zigzag & 1)
