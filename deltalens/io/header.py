"""The header of a safetensors file, parsed with every check that the format allows.

The safetensors library is not used for reading: mapped pages count as resident memory, and it
accepts a header that names a tensor twice. It is the oracle in the tests.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from deltalens.errors import CheckpointError
from deltalens.io.files import open_input
from deltalens.io.plain_json import is_unicode, name_twice

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
"""The dtypes whose entries are ranked; all others are left as the fine-tune has them."""

_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST_HEADER = 100_000_000
_MOST_DIMENSIONS = 64
_LONGEST_NAME = 1_000
"""Characters: models keep to a tenth of it, and libraries look for patterns in every name."""
_LARGEST = 1 << 63
_LARGE, _SPARSE = 1 << 30, 64
"""A file so large has at least this part of its bytes on the disk, packed by the file system or
not; reading the zeros of a hole of terabytes would take days."""
_LFS_POINTER = b"version "


class TensorEntry(NamedTuple):
    """Where one stored tensor lies."""

    name: str
    dtype: str
    """As safetensors writes it: F32, BF16, ..."""
    shape: tuple[int, ...]
    file: Path
    begin: int
    """Offset of the first byte, from the beginning of the file."""
    end: int

    @property
    def numel(self) -> int:
        """How many entries the tensor has."""
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name!r} ({self.dtype} {list(self.shape)})"


def read_header(file: Path) -> tuple[bytes, list[TensorEntry]]:
    """The raw header of a safetensors file, length included, and its tensors by offset.

    Raises:
        CheckpointError: the file cannot be read, or is not what its header says.
    """
    try:
        about = file.stat()
        size = about.st_size
        with open_input(file) as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == _LFS_POINTER:
                raise CheckpointError(
                    f"{file}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
                )
            if len(prefix) < 8 or length > size - 8:
                raise CheckpointError(
                    f"{file}: truncated or no safetensors file: its header would have "
                    f"{length:,} bytes and the file has {size:,}; download or copy it again"
                )
            if length > _LARGEST_HEADER:
                raise CheckpointError(
                    f"{file}: header of {length:,} bytes; the format ends at 100 MB"
                )
            header = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    on_disk = 512 * about.st_blocks  # 0 where the file system does not say.
    if size > _LARGE and 0 < on_disk < size // _SPARSE:
        raise CheckpointError(
            f"{file}: a hole, not weights: {size:,} bytes long, of which the disk holds "
            f"{on_disk:,}; download or copy it again"
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
            twice = _shown(name_twice(pairs))
            raise CheckpointError(f"{file}: its header names {twice} more than once")
        return fields

    try:
        text = header.decode("utf-8")
        fields = json.loads(text)
        if header.count(b":") != _names_in(fields):
            # Each name is followed by one colon: it stands twice, or a string holds a colon.
            fields = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: its header is not a JSON object")
    metadata = fields.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ is not an object of strings")
    return fields


def _names_in(fields: object) -> int:
    """How many names the objects of a header have, two levels deep."""
    if not isinstance(fields, dict):
        return 0
    return len(fields) + sum(len(field) for field in fields.values() if isinstance(field, dict))


def _shown(value: object) -> str:
    """Something out of a header, for a message: a hostile one can be as long as the header."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"


def _are_counts(numbers: object, most: int) -> bool:
    """Whether it is a list of so many sizes or positions at most."""
    if not isinstance(numbers, list) or len(numbers) > most:
        return False
    for number in numbers:  # noqa: SIM110 - a generator takes twice as long, 300,000 times.
        # A loop and no generator: a mixture of experts has 100,000 tensors.
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
        raise _refused(file, name, f"unknown dtype {_shown(dtype)}")
    # Few sizes, so that their product is soon known.
    if not _are_counts(shape, _MOST_DIMENSIONS):
        raise _refused(file, name, f"{_shown(shape)} is not a tensor's shape")
    numel = prod(shape)
    if numel >= _LARGEST or (numel == 0 and prod(size or 1 for size in shape) >= _LARGEST):
        raise _refused(file, name, f"{_shown(shape)} is not a tensor's shape")
    if not _are_counts(offsets, 2) or len(offsets) != 2:
        why = f"data_offsets {_shown(offsets)} are not two positions in the file"
        raise _refused(file, name, why)
    begin, end = offsets
    if (end - begin) * 8 != numel * _BITS[dtype]:
        why = f"{dtype} {shape} does not fill bytes {begin:,} to {end:,}"
        raise _refused(file, name, why)
    return TensorEntry(name, dtype, tuple(shape), file, data + begin, data + end)


def _refused(file: Path, name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: tensor {_shown(name)}: {why}")


def _check_layout(file: Path, entries: list[TensorEntry], data: int, size: int) -> None:
    at = data
    for entry in entries:
        if entry.begin != at:
            what = "overlaps the one before" if entry.begin < at else "leaves a hole before it"
            raise CheckpointError(f"{file}: tensor {entry} {what}")
        at = entry.end
    if at != size:
        what = "truncated" if at > size else "longer than its header says"
        raise CheckpointError(
            f"{file}: {what}: its tensors end at byte {at:,} of {size:,}; download or copy it again"
        )
