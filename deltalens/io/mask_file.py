"""Masks on disk: a safetensors file with one bit per weight, and the model that they belong to.

The file holds one tensor, `kept` (U8): the bits of all layers in sequence, each layer starting at a
new byte. Entry i of a layer's weight is bit i % 8 of byte i // 8, and 1 where the entry is kept.
The metadata list the layers in that order; layers of many blocks with the same shape are listed
together, so that the metadata stay small. They also hold a checksum over the metadata and the bits.
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

__all__ = [
    "MaskFile",
    "StoredMask",
    "fingerprint_of",
    "masks_checksum",
    "read_masks",
    "write_masks",
]

_TENSOR = "kept"
_SHORT = 4
"""Hexadecimal digits stored of each layer's digest: enough to name the layers that differ."""
_LAYERS = Items(Row((NAME, Items(Whole(-1)), Text(), Items(Whole(), 0, 64))))
"""Layers of the same shape whose names differ in one number: the part of the name before it, the
numbers, the part behind it, the shape."""


@dataclass(frozen=True)
class StoredMask:
    """The mask of one layer's weight."""

    name: str
    """The layer's name in the model."""
    shape: tuple[int, ...]
    """The shape of the weight."""
    digest: str
    """Digest of the weight before any entry was removed, hexadecimal; files store its beginning."""
    bits: np.ndarray
    """Packed bits, uint8, (ceil(n / 8),); 1 is kept."""


@dataclass(frozen=True)
class MaskFile:
    """The content of a file of masks."""

    masks: tuple[StoredMask, ...]
    fingerprint: str
    """Hash over the digests of all layers (`fingerprint_of`)."""
    about: dict[str, Any]
    """How the masks were made."""

    def differing(self, digests: Mapping[str, str]) -> list[str]:
        """Compare a model's weights with those that the masks were made for.

        Args:
            digests: layer name -> digest of the model's weight.

        Returns:
            Names of the layers whose weights differ; all layers if the stored digests do not tell
            which; none if all are equal.
        """
        if fingerprint_of(digests) == self.fingerprint:
            return []
        names = [mask.name for mask in self.masks]
        short = {mask.name: mask.digest for mask in self.masks}
        differing = [n for n in names if not digests.get(n, "").startswith(short[n])]
        return differing or names


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """Hash the digests of a model's layers.

    Args:
        digests: layer name -> digest of its weight.

    Returns:
        32 hexadecimal digits.
    """
    text = "\n".join(f"{name} {digests[name]}" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_masks(path: str | Path, masks: Sequence[StoredMask], about: Mapping[str, Any]) -> None:
    """Write masks to a file, whole or not at all.

    Args:
        path: the file; overwritten.
        masks: one per layer.
        about: how the masks were made, as JSON values.

    Raises:
        DeltaLensError: the file cannot be written.
    """
    from safetensors.numpy import save

    groups: dict[tuple[str, str, tuple[int, ...]], list[StoredMask]] = {}
    for mask in masks:
        groups.setdefault((*split_block(mask.name)[::2], mask.shape), []).append(mask)
    ordered = [mask for group in groups.values() for mask in group]
    metadata = {
        "format": f"deltalens masks {FORMAT}",
        "deltalens": version(),
        "fingerprint": fingerprint_of({mask.name: mask.digest for mask in masks}),
        "layers": _compact(
            [
                [stem, [split_block(mask.name)[1] for mask in group], rest, list(shape)]
                for (stem, rest, shape), group in groups.items()
            ]
        ),
        "digests": "".join(mask.digest[:_SHORT] for mask in ordered),
        "about": _compact(dict(about)),
    }
    bits = np.concatenate([np.empty(0, np.uint8), *(mask.bits for mask in ordered)])
    metadata[CHECKSUM] = masks_checksum(metadata, bits)
    write_whole(Path(path), save({_TENSOR: bits}, metadata))


def masks_checksum(metadata: Mapping[str, str], bits: np.ndarray) -> str:
    """Compute the checksum of a file of masks.

    Args:
        metadata: the file's metadata; its checksum is left out.
        bits: the packed masks, uint8.

    Returns:
        The checksum of both, as the metadata holds it.
    """
    fields = {name: text for name, text in metadata.items() if name != CHECKSUM}
    text = json.dumps([fields, checksum(bits.data)], sort_keys=True)
    return checksum(text.encode())


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _join(stem: str, number: int, rest: str) -> str:
    return stem if number < 0 else ".".join(part for part in (stem, str(number), rest) if part)


def read_masks(path: str | Path) -> MaskFile:
    """Read a file of masks.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or is not a file of masks.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    raw, entries = read_header(file)
    metadata = json.loads(raw[8:]).get("__metadata__", {})
    readable = {f"deltalens masks {format}": format for format in FORMATS}
    format = readable.get(metadata.get("format", ""))
    if format is None or [entry.name for entry in entries] != [_TENSOR]:
        raise CheckpointError(
            f"{file}: not a file of masks that this deltalens ({version()}) can read: its format "
            f"is {metadata.get('format', '')[:60]!r}, not {' or '.join(map(repr, readable))}"
        )
    bits = _read_bits(file, entries[0].begin)
    if (CHECKSUM in metadata or has_checksums(format)) and (
        metadata.get(CHECKSUM) != masks_checksum(metadata, bits)
    ):
        raise CheckpointError(
            f"{file}: damaged: its checksum does not match its masks; copy the file again, or "
            "train the masks again"
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
    digests, offset = metadata["digests"], 0
    for stem, numbers, rest, shape in layers:
        size = -(-prod(shape) // 8)
        for number in numbers:
            digest = digests[len(masks) * _SHORT :][:_SHORT]
            name = _join(stem, number, rest)
            masks.append(StoredMask(name, tuple(shape), digest, bits[offset : offset + size]))
            offset += size
    if offset != bits.size or len(digests) != _SHORT * len(masks):
        raise RecordError(
            f"{file}: its list of layers needs {offset:,} bytes and {len(masks):,} digests, but "
            f"the file has {bits.size:,} and {len(digests) // _SHORT:,}"
        )
    names = [mask.name for mask in masks]
    if len({*names}) < len(names):
        raise RecordError(f"{file}: its list of layers names a layer twice")
    return MaskFile(tuple(masks), metadata["fingerprint"], about)
