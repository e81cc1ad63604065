"""The memory that Arrow columns take once they are converted to Python, computed beforehand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from deltalens.errors import DataError

__all__ = ["expanded_size", "is_compressed"]

_VALUE, _OBJECT = 16, 64
"""Least number of bytes that a value takes in Python, and a mapping."""
_BATCH, _DICTIONARY = 3, 2
"""Kinds of messages, as Arrow numbers them."""


def expanded_size(path: Path, column: Any) -> int:
    """Estimate the memory of a column's values, each converted on its own.

    Args:
        path: the file, for messages.
        column: an Arrow array that has been validated.

    Returns:
        A number of bytes.

    Raises:
        DataError: the column has a type that can repeat values in ways that are not counted.
    """
    import pyarrow as pa

    kind, count = column.type, len(column)
    if isinstance(kind, pa.BaseExtensionType):
        return expanded_size(path, column.storage)
    if pa.types.is_dictionary(kind):
        return _VALUE * count + _dictionary_size(column)
    if pa.types.is_struct(kind):
        return _OBJECT * count + sum(expanded_size(path, field) for field in column.flatten())
    if _is_list(kind):
        return _VALUE * count + expanded_size(path, column.flatten())
    if kind in (pa.string_view(), pa.binary_view()):
        return _VALUE * count + int(_view_lengths(column).sum())
    if pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        raise DataError(
            f"{path}: columns of type {kind} cannot be read; save the column as lists and texts"
        )
    return _VALUE * count + int(column.nbytes)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_map(kind)
    )


def _dictionary_size(column: Any) -> int:
    """Bytes of the values that a dictionary column's indices refer to."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values, indices = column.dictionary, column.indices
    texts = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    if values.type not in texts:
        return len(column) * int(values.nbytes)
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    return int(lengths.astype(np.int64)[indices.drop_null().to_numpy(zero_copy_only=False)].sum())


def _view_lengths(column: Any) -> np.ndarray:
    """The lengths of views: a view has 16 bytes, of which the first four are the length."""
    views = np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)
    return views[column.offset : column.offset + len(column), 0].clip(0).astype(np.int64)


def is_compressed(message: bytes) -> bool:
    """Tell whether a message of an Arrow stream is a compressed batch of rows or dictionary.

    Args:
        message: the message's metadata, a flatbuffer (`Message.fbs` in the Arrow format).

    Returns:
        True if it is.

    Raises:
        struct.error: the metadata end too early.
        IndexError: likewise.
    """
    table = struct.unpack_from("<I", message)[0]
    kind = _field(message, table, 1)
    header = _field(message, table, 2)
    if kind is None or header is None:
        return False
    number = message[kind]
    if number not in (_BATCH, _DICTIONARY):
        return False
    batch = _follow(message, header)
    if number == _DICTIONARY:
        inner = _field(message, batch, 1)
        if inner is None:
            return False
        batch = _follow(message, inner)
    return _field(message, batch, 3) is not None


def _follow(message: bytes, position: int) -> int:
    """The position that the offset at a position points to."""
    return int(position + struct.unpack_from("<I", message, position)[0])


def _field(message: bytes, table: int, number: int) -> int | None:
    """The position of a field of a table; None if the field is absent."""
    offsets = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, offsets)[0]
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    offset = struct.unpack_from("<H", message, offsets + entry)[0]
    return table + offset if offset else None
