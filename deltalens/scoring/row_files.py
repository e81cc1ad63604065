"""The records of a data file, whatever it is written as: JSON lines, a JSON array, either of them
packed with gzip, Parquet, or a folder that a `datasets.Dataset` was saved to."""

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
from deltalens.scoring.arrow_rows import of_folder, of_parquet
from deltalens.scoring.row_values import Record, check_expansion, parse_json

__all__ = ["Record", "name_of", "records"]

_LONGEST_LINE = 1 << 28
_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}


def name_of(path: Path) -> str:
    """What a file of rows is called: its name without `.jsonl`, `.jsonl.gz`, ...; a folder's own
    name."""
    if path.is_dir():
        return path.name
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def records(path: Path, wanted: Collection[str]) -> Iterator[Record]:
    """The records of a file or folder, read as they are taken.

    What it is written as is seen from its first bytes; its name matters only for Parquet.

    Args:
        path: the file or folder.
        wanted: of a table with columns, those to be read; all where it has none of them.

    Raises:
        DataError: it cannot be read, or unpacks to far more than any data would.
    """
    if path.is_dir():
        yield from of_folder(path, wanted)
        return
    with _opened(path) as (file, size):
        head = _head(file)
        if path.suffix.lower() == ".parquet" or head.startswith(_PARQUET):
            yield from of_parquet(path, file, size, wanted)
            return
        for magic, packer in _FOREIGN.items():
            if head.startswith(magic):
                raise DataError(f"{path}: packed with {packer}; unpack it first, or use gzip")
        if head.removeprefix(_BOM).lstrip().startswith(b"["):
            yield from _of_array(path, file.read())
        else:
            yield from _of_lines(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """A file, unpacked where it is packed, and its size on the disk."""
    try:
        size = path.stat().st_size
        with open_input(path) as plain:
            if plain.peek(2).startswith(_GZIP):
                with gzip.GzipFile(fileobj=plain) as packed:
                    yield io.BufferedReader(_Unpacked(path, packed, size)), size
            else:
                yield plain, size
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Unpacked(io.RawIOBase):
    """What gzip gives, until it gives more than any data would."""

    def __init__(self, path: Path, packed: gzip.GzipFile, size: int) -> None:
        self._path, self._packed, self._size, self._given = path, packed, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        given = self._packed.readinto(buffer)
        self._given += given
        check_expansion(self._path, self._given, self._size)
        return given


def _head(file: io.BufferedReader) -> bytes:
    """The first bytes, which stay there to be read."""
    return file.peek(64)[:64]


def _of_lines(path: Path, file: BinaryIO) -> Iterator[Record]:
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{path}: line {number} is longer than {_LONGEST_LINE >> 20} MiB")
        if line.strip():
            yield f"line {number}", functools.partial(parse_json, line)


def _of_array(path: Path, raw: bytes) -> Iterator[Record]:
    try:
        found = parse_json(raw)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    for number, record in enumerate(found, 1):
        yield f"row {number}", functools.partial(_same, record)


def _same(record: Any) -> Any:
    return record
