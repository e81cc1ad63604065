"""Parsing the header of a safetensors file, with every check that the format allows.

The safetensors library is not used for reading, since mapped pages count as resident memory and it
accepts a header that names a tensor twice. In the tests, it is the reference.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from deltalens.errors import CheckpointError
from deltalens.io.files import open_input
from deltalens.io.plain_json import is_unicode, repeated_name

__all__ = ["FLOATS", "TensorEntry", "read_header"]

_BITS = {
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}

FLOATS = ("F16", "BF16", "F32", "F64")
"""The dtypes whose entries are ranked; tensors of all others stay as the fine-tune has them."""

_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST_HEADER = 100_000_000
_MOST_DIMENSIONS = 64
_LONGEST_NAME = 1_000
"""Characters in a tensor's name. Real names have a tenth of that, and libraries match patterns
against every name."""
_LARGEST = 1 << 63
_LARGE, _SPARSE = 1 << 30, 64
"""A file of at least `_LARGE` bytes must occupy 1/`_SPARSE` of them on the disk, even if the file
system compresses it. Reading the zeros of a sparse file of terabytes would take days."""
_LFS_POINTER = b"version "


class TensorEntry(NamedTuple):
    """Where a tensor is stored, and its dtype and shape."""

    name: str
    dtype: str
    """As safetensors spells it: F32, BF16, ..."""
    shape: tuple[int, ...]
    file: Path
    begin: int
    """Offset of the first byte, from the beginning of the file."""
    end: int
    """Offset behind the last byte."""

    @property
    def numel(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name!r} ({self.dtype} {list(self.shape)})"


def read_header(file: Path) -> tuple[bytes, list[TensorEntry]]:
    """Read the header of a safetensors file.

    Args:
        file: the file.

    Returns:
        The header's raw bytes, including the 8 bytes of its length, and the tensors, in the order
        of their bytes.

    Raises:
        CheckpointError: the file cannot be read, or its header is malformed or does not match its
            size.
    """
    try:
        status = file.stat()
        size = status.st_size
        with open_input(file) as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == _LFS_POINTER:
                raise CheckpointError(
                    f"{file}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
                )
            if len(prefix) < 8 or length > size - 8:
                raise CheckpointError(
                    f"{file}: truncated, or not a safetensors file: it starts with a header length "
                    f"of {length:,} bytes, and has {size:,} bytes in all; download or copy it again"
                )
            if length > _LARGEST_HEADER:
                raise CheckpointError(
                    f"{file}: its header has {length:,} bytes; the format allows 100 MB"
                )
            header = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    on_disk = 512 * status.st_blocks  # 0 where the file system does not say.
    if size > _LARGE and 0 < on_disk < size // _SPARSE:
        raise CheckpointError(
            f"{file}: a sparse file, not weights: {size:,} bytes long, but only {on_disk:,} are on "
            "the disk; download or copy it again"
        )
    fields = _parse(file, header)
    fields.pop("__metadata__", None)
    entries = [_entry(file, name, field, 8 + length) for name, field in fields.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(file, entries, 8 + length, size)
    return prefix + header, entries


def _parse(file: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            repeated = _short(repeated_name(pairs))
            raise CheckpointError(f"{file}: its header names {repeated} more than once")
        return fields

    try:
        text = header.decode("utf-8")
        fields = json.loads(text)
        if header.count(b":") != _count_names(fields):
            # One colon follows each name: either a name is repeated, or a string holds a colon.
            fields = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: its header is not a JSON object")
    metadata = fields.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ is not an object of strings")
    return fields


def _count_names(fields: object) -> int:
    """The number of names in the objects of a header, two levels deep."""
    if not isinstance(fields, dict):
        return 0
    return len(fields) + sum(len(field) for field in fields.values() if isinstance(field, dict))


def _short(value: object) -> str:
    """A value from a header, shortened for a message: it can be as long as the header."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"


def _are_counts(numbers: object, most: int) -> bool:
    """Whether this is a list of at most `most` sizes or positions."""
    if not isinstance(numbers, list) or len(numbers) > most:
        return False
    for number in numbers:  # noqa: SIM110 - a generator takes twice as long.
        # This runs 300,000 times: a mixture of experts has 100,000 tensors.
        if type(number) is not int or not 0 <= number < _LARGEST:
            return False
    return True


def _entry(file: Path, name: str, field: Any, data: int) -> TensorEntry:
    if not name.isascii() and not is_unicode(name):
        raise _refused(file, name, "its name is not valid Unicode")
    if len(name) > _LONGEST_NAME:
        raise _refused(file, name, f"its name has more than {_LONGEST_NAME:,} characters")
    if not isinstance(field, dict) or field.keys() != _FIELDS:
        raise _refused(file, name, "its entry is not {dtype, shape, data_offsets}")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _refused(file, name, f"unknown dtype {_short(dtype)}")
    # The number of sizes is limited, so that their product is quick to compute.
    if not _are_counts(shape, _MOST_DIMENSIONS):
        raise _refused(file, name, f"{_short(shape)} is not a tensor's shape")
    numel = prod(shape)
    if numel >= _LARGEST or (numel == 0 and prod(size or 1 for size in shape) >= _LARGEST):
        raise _refused(file, name, f"{_short(shape)} is not a tensor's shape")
    if not _are_counts(offsets, 2) or len(offsets) != 2:
        why = f"data_offsets {_short(offsets)} are not two positions in the file"
        raise _refused(file, name, why)
    begin, end = offsets
    if (end - begin) * 8 != numel * _BITS[dtype]:
        why = f"{dtype} {shape} does not fill bytes {begin:,} to {end:,}"
        raise _refused(file, name, why)
    return TensorEntry(name, dtype, tuple(shape), file, data + begin, data + end)


def _refused(file: Path, name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: tensor {_short(name)}: {why}")


def _check_layout(file: Path, entries: list[TensorEntry], data: int, size: int) -> None:
    """Refuse tensors that do not fill the file without gaps; `data` is the offset of the first."""
    position = data
    for entry in entries:
        if entry.begin != position:
            overlap = entry.begin < position
            fault = "overlaps the one before it" if overlap else "leaves a gap before it"
            raise CheckpointError(f"{file}: tensor {entry} {fault}")
        position = entry.end
    if position != size:
        fault = "truncated" if position > size else "longer than its header says"
        raise CheckpointError(
            f"{file}: {fault}: its tensors end at byte {position:,} of {size:,}; download or copy "
            "it again"
        )
