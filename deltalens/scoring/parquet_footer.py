"""What the footer of a Parquet file says of its columns, read without Arrow.

Arrow's own look at a column's metadata (`RowGroupMetaData.column`) ends the process where a footer
contradicts itself: a C++ exception that nobody can catch. This reads Thrift's compact protocol, and
of it the two numbers that are needed.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

__all__ = ["ColumnSize", "column_sizes"]

_MAGIC = b"PAR1"
_DEEPEST = 32
_ROW_GROUPS, _COLUMNS, _META_DATA, _VALUES, _UNPACKED = 4, 1, 3, 5, 6
"""Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData, by their numbers."""


class ColumnSize(NamedTuple):
    """Of one column in one group of rows."""

    values: int
    unpacked: int
    """Bytes of its pages before they were compressed."""


def column_sizes(file: io.BufferedIOBase) -> list[list[ColumnSize]]:
    """For each group of rows, its columns in the order of the schema's leaves.

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
            [ColumnSize(c[_META_DATA][_VALUES], c[_META_DATA][_UNPACKED]) for c in group[_COLUMNS]]
            for group in footer[_ROW_GROUPS]
        ]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"its footer is damaged ({type(error).__name__})") from error


class _Compact:
    """A reader of Thrift's compact protocol; everything it reads takes a byte at least, so what is
    made is bounded by what is there."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def struct(self, depth: int) -> dict[int, Any]:
        """The fields of a struct by number."""
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            # A truth value is in its kind.
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
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._content):
            raise IndexError(count)
        return self._content[self._at - count : self._at]

    def _varint(self) -> int:
        found = shift = 0
        while (byte := self._byte()) & 128:
            found |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("its footer has a number of more than 64 bits")
        return found | byte << shift

    def _integer(self) -> int:
        found = self._varint()
        return found >> 1 ^ -(found & 1)
