"""Reading the records of a data file in any supported format: JSON lines, a JSON array, either of
them compressed with gzip, Parquet, or a folder with a saved `datasets.Dataset`."""

from __future__ import annotations

import functools
import gzip
import io
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from deltalens.errors import DataError
from deltalens.io.files import open_input
from deltalens.scoring.arrow_rows import dataset_rows, parquet_rows
from deltalens.scoring.row_values import Record, check_expansion, parse_json

__all__ = ["LONGEST_LINE", "Record", "data_name", "records"]

LONGEST_LINE = 1 << 28
"""Bytes; a longer line is refused, so that a file without line ends is not read into memory."""
_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_UNSUPPORTED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}


def data_name(path: Path) -> str:
    """Derive the name of data from its path.

    Args:
        path: a file or folder.

    Returns:
        The file's name without `.jsonl`, `.jsonl.gz`, ...; a folder's name as it is.
    """
    if path.is_dir():
        return path.name
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def records(path: Path, wanted: Collection[str]) -> Iterator[Record]:
    """Read the records of a file or folder, lazily.

    The first bytes decide the format; the name matters only for Parquet.

    Args:
        path: the file or folder.
        wanted: columns to read, in formats with columns; all columns if the file has none of them.

    Yields:
        Where each record is, and a function that parses it.

    Raises:
        DataError: the file cannot be read, or expands to far more than data would.
    """
    if path.is_dir():
        yield from dataset_rows(path, wanted)
        return
    with _opened(path) as (file, size):
        head = _head(file)
        if path.suffix.lower() == ".parquet" or head.startswith(_PARQUET):
            yield from parquet_rows(path, file, size, wanted)
            return
        for magic, format in _UNSUPPORTED.items():
            if head.startswith(magic):
                raise DataError(
                    f"{path}: compressed with {format}; decompress it first, or use gzip"
                )
        if head.removeprefix(_BOM).lstrip().startswith(b"["):
            yield from _of_array(path, file.read())
        else:
            yield from _of_lines(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """A file, decompressed if necessary, and its size on the disk."""
    try:
        size = path.stat().st_size
        with open_input(path) as plain:
            if plain.peek(2).startswith(_GZIP):
                with gzip.GzipFile(fileobj=plain) as compressed:
                    yield io.BufferedReader(_Decompressed(path, compressed, size)), size
            else:
                yield plain, size
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be decompressed: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Decompressed(io.RawIOBase):
    """A decompressed stream that ends with an error if it is implausibly long."""

    def __init__(self, path: Path, compressed: gzip.GzipFile, size: int) -> None:
        self._path, self._compressed, self._size, self._total = path, compressed, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._compressed.readinto(buffer)
        self._total += count
        check_expansion(self._path, self._total, self._size)
        return count


def _head(file: io.BufferedReader) -> bytes:
    """The first bytes of a file, without consuming them."""
    return file.peek(64)[:64]


def _of_lines(path: Path, file: BinaryIO) -> Iterator[Record]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MiB")
        if line.strip():
            yield f"line {number}", functools.partial(parse_json, line)


def _of_array(path: Path, raw: bytes) -> Iterator[Record]:
    try:
        array = parse_json(raw)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    for number, record in enumerate(array, 1):
        yield f"row {number}", functools.partial(_identity, record)


def _identity(record: Any) -> Any:
    return record
