"""Masks on disk: one bit a weight in a safetensors file, and which model they belong to.

The file holds one tensor, `kept` (U8): the layers' bits one after the other, each from a new byte
on; entry i of a weight is bit i % 8 of byte i // 8, and 1 where it is kept. Its metadata lists the
layers in that order, those of the same shape in many blocks together, so that it stays small, and
holds the checksum of all of that and of the bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from deltalens.errors import CheckpointError, RecordError
from deltalens.io.checksum import CHECKSUM, checksum
from deltalens.io.files import write_whole
from deltalens.io.header import read_header
from deltalens.io.plain_json import parse_json
from deltalens.io.records.schema import NAME, Fields, Items, Row, Text, Whole, require
from deltalens.io.version import FORMAT, FORMATS, has_checksums, version
from deltalens.names import split_block

__all__ = ["MaskFile", "StoredMask", "fingerprint_of", "read_masks", "write_masks"]

_TENSOR = "kept"
_SHORT = 4
"""Hexadecimal digits kept of each layer's digest: to name the layers that differ."""
_LAYERS = Items(Row((NAME, Items(Whole(-1)), Text(), Items(Whole(), 0, 64))))
"""Layers of the same shape whose names differ in a number: what stands before it, the numbers, what
stands behind it, the shape."""


@dataclass(frozen=True)
class StoredMask:
    """The mask of one layer's weight."""

    name: str
    """The layer's name in the model."""
    shape: tuple[int, ...]
    """The weight's."""
    digest: str
    """Of the weight before anything was removed, hexadecimal; only its beginning is stored."""
    bits: np.ndarray
    """uint8, (ceil(n / 8),)."""


@dataclass(frozen=True)
class MaskFile:
    """What a file of masks says."""

    masks: tuple[StoredMask, ...]
    fingerprint: str
    """Of all layers (`fingerprint_of`)."""
    about: dict[str, Any]
    """How the masks came about."""

    def differing(self, digests: Mapping[str, str]) -> list[str]:
        """Names of the layers whose weights have another digest; all, if it cannot be said."""
        if fingerprint_of(digests) == self.fingerprint:
            return []
        names = [one.name for one in self.masks]
        short = {one.name: one.digest for one in self.masks}
        found = [n for n in names if not digests.get(n, "").startswith(short[n])]
        return found or names


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """A hash of layers' digests, by name."""
    text = "\n".join(f"{name} {digests[name]}" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_masks(path: str | Path, masks: Sequence[StoredMask], about: Mapping[str, Any]) -> None:
    """Write masks to a file, whole or not at all.

    Args:
        path: the file; overwritten.
        masks: of each layer.
        about: how they came about; anything that JSON can say.

    Raises:
        DeltaLensError: it cannot be written.
    """
    from safetensors.numpy import save

    groups: dict[tuple[str, str, tuple[int, ...]], list[StoredMask]] = {}
    for one in masks:
        groups.setdefault((*split_block(one.name)[::2], one.shape), []).append(one)
    ordered = [one for some in groups.values() for one in some]
    metadata = {
        "format": f"deltalens masks {FORMAT}",
        "deltalens": version(),
        "fingerprint": fingerprint_of({one.name: one.digest for one in masks}),
        "layers": _compact(
            [
                [stem, [split_block(one.name)[1] for one in some], rest, list(shape)]
                for (stem, rest, shape), some in groups.items()
            ]
        ),
        "digests": "".join(one.digest[:_SHORT] for one in ordered),
        "about": _compact(dict(about)),
    }
    bits = np.concatenate([np.empty(0, np.uint8), *(one.bits for one in ordered)])
    metadata[CHECKSUM] = _checksum(metadata, bits)
    write_whole(Path(path), save({_TENSOR: bits}, metadata))


def _checksum(metadata: Mapping[str, str], bits: np.ndarray) -> str:
    """Of the metadata, and of the bits behind it."""
    said = {name: text for name, text in metadata.items() if name != CHECKSUM}
    text = json.dumps([said, checksum(bits.data)], sort_keys=True)
    return checksum(text.encode())


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _join(stem: str, number: int, rest: str) -> str:
    return stem if number < 0 else ".".join(part for part in (stem, str(number), rest) if part)


def read_masks(path: str | Path) -> MaskFile:
    """Read a file of masks.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    raw, entries = read_header(file)
    metadata = json.loads(raw[8:]).get("__metadata__", {})
    known = {f"deltalens masks {format}": format for format in FORMATS}
    format = known.get(metadata.get("format", ""))
    if format is None or [one.name for one in entries] != [_TENSOR]:
        raise CheckpointError(
            f"{file}: no file of masks that this deltalens ({version()}) reads: its format is "
            f"{metadata.get('format', '')[:60]!r}, not {' or '.join(map(repr, known))}"
        )
    bits = _read_bits(file, entries[0].begin)
    if (CHECKSUM in metadata or has_checksums(format)) and (
        metadata.get(CHECKSUM) != _checksum(metadata, bits)
    ):
        raise CheckpointError(
            f"{file}: damaged: its checksum is not that of its masks; copy or train them again"
        )
    try:
        return _parse(file, metadata, bits)
    except RecordError as error:
        raise CheckpointError(str(error)) from error


def _read_bits(file: Path, begin: int) -> np.ndarray:
    try:
        return np.fromfile(file, dtype=np.uint8, offset=begin)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _parse(file: Path, metadata: Mapping[str, str], bits: np.ndarray) -> MaskFile:
    require(file, metadata, dict.fromkeys(("fingerprint", "layers", "digests", "about"), Text()))
    layers, about = (
        parse_json(f"{file}, its {name}", metadata[name]) for name in ("layers", "about")
    )
    require(file, {"layers": layers, "about": about}, {"layers": _LAYERS, "about": Fields()})
    masks: list[StoredMask] = []
    digests, at = metadata["digests"], 0
    for stem, numbers, rest, shape in layers:
        size = -(-prod(shape) // 8)
        for number in numbers:
            digest = digests[len(masks) * _SHORT :][:_SHORT]
            name = _join(stem, number, rest)
            masks.append(StoredMask(name, tuple(shape), digest, bits[at : at + size]))
            at += size
    if at != bits.size or len(digests) != _SHORT * len(masks):
        raise RecordError(
            f"{file}: its layers list {at:,} bytes and {len(masks):,} digests, and it has "
            f"{bits.size:,} and {len(digests) // _SHORT:,}"
        )
    names = [one.name for one in masks]
    if len({*names}) < len(names):
        raise RecordError(f"{file}: its layers name one twice")
    return MaskFile(tuple(masks), metadata["fingerprint"], about)
