"""What Arrow's columns come to in Python, counted before anything is made of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from deltalens.errors import DataError

__all__ = ["is_packed", "spread"]

_VALUE, _OBJECT = 16, 64
"""Bytes of a value in Python, and of a mapping: at least."""
_BATCH, _DICTIONARY = 3, 2
"""Kinds of messages, as Arrow numbers them."""


def spread(path: Path, column: Any) -> int:
    """Bytes that a column's values come to, each made for itself.

    Args:
        path: the file, for messages.
        column: an Arrow array that has been validated.

    Raises:
        DataError: of a kind that can mean one value many times in ways that are not counted.
    """
    import pyarrow as pa

    kind, count = column.type, len(column)
    if isinstance(kind, pa.BaseExtensionType):
        return spread(path, column.storage)
    if pa.types.is_dictionary(kind):
        return _VALUE * count + _meant(column)
    if pa.types.is_struct(kind):
        return _OBJECT * count + sum(spread(path, one) for one in column.flatten())
    if _is_list(kind):
        return _VALUE * count + spread(path, column.flatten())
    if kind in (pa.string_view(), pa.binary_view()):
        return _VALUE * count + int(_view_lengths(column).sum())
    if pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        raise DataError(f"{path}: a column of type {kind} is not read; save it as lists and texts")
    return _VALUE * count + int(column.nbytes)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_map(kind)
    )


def _meant(column: Any) -> int:
    """Bytes of the values that a dictionary's indices mean."""
    import pyarrow as pa
    import pyarrow.compute as pc

    held, indices = column.dictionary, column.indices
    plain = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    if held.type not in plain:
        return len(column) * int(held.nbytes)
    lengths = pc.fill_null(pc.binary_length(held), 0).to_numpy(zero_copy_only=False)
    return int(lengths.astype(np.int64)[indices.drop_null().to_numpy(zero_copy_only=False)].sum())


def _view_lengths(column: Any) -> np.ndarray:
    """A view is 16 bytes, of which the first four are its length."""
    views = np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)
    return views[column.offset : column.offset + len(column), 0].clip(0).astype(np.int64)


def is_packed(message: bytes) -> bool:
    """Whether a message of an Arrow stream is a batch of rows, or a dictionary, that is packed.

    Args:
        message: its metadata, a flatbuffer (`Message.fbs` in the Arrow format).

    Raises:
        struct.error: it ends too early.
    """
    table = struct.unpack_from("<I", message)[0]
    kind = _field(message, table, 1)
    header = _field(message, table, 2)
    if kind is None or header is None:
        return False
    number = message[kind]
    if number not in (_BATCH, _DICTIONARY):
        return False
    batch = _followed(message, header)
    if number == _DICTIONARY:
        inner = _field(message, batch, 1)
        if inner is None:
            return False
        batch = _followed(message, inner)
    return _field(message, batch, 3) is not None


def _followed(message: bytes, place: int) -> int:
    return int(place + struct.unpack_from("<I", message, place)[0])


def _field(message: bytes, table: int, number: int) -> int | None:
    """Where a field of a table is; None where it is not given."""
    offsets = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, offsets)[0]
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    at = struct.unpack_from("<H", message, offsets + entry)[0]
    return table + at if at else None
