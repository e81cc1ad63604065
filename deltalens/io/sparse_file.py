"""Sparse adapters on disk: a safetensors file with the trained entries of each weight.

For a weight NAME the file holds `NAME.indices`, ascending flat indices (int32 or int64), and
`NAME.values`, what is added to the base there (fp32 or fp64; the sum is rounded once to the
weight's dtype). Where masks changed during the training, `NAME.folded_indices` and
`NAME.folded_weights` hold the entries that any mask has held, and the weight's own numbers there,
to be written before the values are added. What trained whole beside the entries (a new head) lies
in `NAME.whole`. The metadata name the base by digests of its weights, and
hold a checksum of all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalens.errors import CheckpointError, RecordError, errors_from
from deltalens.io.checksum import CHECKSUM, checksum
from deltalens.io.files import write_whole
from deltalens.io.header import read_header
from deltalens.io.mask_file import fingerprint_of
from deltalens.io.plain_json import parse_json
from deltalens.io.records.schema import NAME, Fields, Items, Row, Text, Whole, require
from deltalens.io.version import FORMAT, version

__all__ = ["SparseFile", "StoredEntries", "read_sparse", "write_sparse"]

_KIND = "deltalens sparse adapter"
_INDICES, _VALUES = (torch.int32, torch.int64), (torch.float32, torch.float64)
_NUMBERS = (torch.float16, torch.bfloat16, *_VALUES)
"""What weights may be."""
_PARTS = ("indices", "values", "folded_indices", "folded_weights")
_WHOLE = ".whole"
_WEIGHTS = Items(Row((NAME, Items(Whole(), 2, 2), Text())))
"""Of each weight its name, shape and digest."""


@dataclass(frozen=True)
class StoredEntries:
    """The trained entries of one weight."""

    name: str
    """The weight's parameter name."""
    shape: tuple[int, int]
    """The weight's shape."""
    digest: str
    """Digest of the base's weight, hexadecimal; empty if it is not known."""
    indices: Tensor
    """Ascending flat indices, (k,)."""
    values: Tensor
    """What is added there, (k,)."""
    folded_indices: Tensor | None = None
    """Ascending flat indices of all entries that a mask has held; None if there was one mask."""
    folded_weights: Tensor | None = None
    """The weight there before the values are added, in its own dtype."""


@dataclass(frozen=True)
class SparseFile:
    """The content of a file."""

    weights: tuple[StoredEntries, ...]
    about: dict[str, Any]
    """How the adapter was made."""
    whole: dict[str, Tensor]
    """Parameters that trained whole, by name."""


def write_sparse(
    path: Path,
    weights: Sequence[StoredEntries],
    about: Mapping[str, Any],
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter to a file, whole or not at all.

    Args:
        path: the file; overwritten.
        weights: the entries of each weight.
        about: how the adapter was made, as JSON values.
        whole: parameters that trained whole, by name.

    Raises:
        DeltaLensError: the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {
        f"{each.name}.{part}": tensor.detach().cpu().contiguous()
        for each in weights
        for part in _PARTS
        if (tensor := getattr(each, part)) is not None
    }
    for name, tensor in (whole or {}).items():
        tensors[name + _WHOLE] = tensor.detach().cpu().contiguous()
    listed = [[each.name, list(each.shape), each.digest] for each in weights]
    metadata = {
        "format": f"{_KIND} {FORMAT}",
        "deltalens": version(),
        "fingerprint": fingerprint_of({each.name: each.digest for each in weights}),
        "weights": json.dumps(listed, separators=(",", ":")),
        "about": json.dumps(dict(about), separators=(",", ":")),
    }
    metadata[CHECKSUM] = _checksum(metadata, tensors)
    write_whole(path, save(tensors, metadata))


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    fields = {name: text for name, text in metadata.items() if name != CHECKSUM}
    contents = {
        name: checksum(tensor.reshape(-1).view(torch.uint8).numpy().data)
        for name, tensor in tensors.items()
    }
    return checksum(json.dumps([fields, contents], sort_keys=True).encode())


def read_sparse(path: Path) -> SparseFile:
    """Read an adapter.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or is not a sparse adapter.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    raw, _ = read_header(path)
    metadata = json.loads(raw[8:]).get("__metadata__", {})
    if metadata.get("format", "") != f"{_KIND} {FORMAT}":
        raise CheckpointError(
            f"{path}: not a sparse adapter that this deltalens ({version()}) can read: its format "
            f"is {str(metadata.get('format', ''))[:60]!r}, not {f'{_KIND} {FORMAT}'!r}"
        )
    with errors_from("safetensors", f"{path}: cannot be read"):
        tensors = load_file(path)
    if metadata.get(CHECKSUM) != _checksum(metadata, tensors):
        raise CheckpointError(f"{path}: damaged: its checksum does not match; copy the file again")
    try:
        return _parse(path, metadata, tensors)
    except RecordError as error:
        raise CheckpointError(str(error)) from error


def _parse(path: Path, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> SparseFile:
    require(path, metadata, dict.fromkeys(("weights", "about"), Text()))
    weights, about = (
        parse_json(f"{path}, its {name}", metadata[name]) for name in ("weights", "about")
    )
    require(path, {"weights": weights, "about": about}, {"weights": _WEIGHTS, "about": Fields()})
    names = [name for name, _, _ in weights]
    if not names or len({*names}) < len(names):
        raise RecordError(f"{path}: lists no weight, or one twice")
    stored = []
    for name, shape, digest in weights:
        parts = [tensors.get(f"{name}.{part}") for part in _PARTS]
        _check(path, name, shape, parts)
        stored.append(StoredEntries(name, (shape[0], shape[1]), digest, *parts))  # type: ignore[arg-type]
    whole = {
        name.removesuffix(_WHOLE): tensor
        for name, tensor in tensors.items()
        if name.endswith(_WHOLE) and tensor.dtype in _NUMBERS
    }
    return SparseFile(tuple(stored), about, whole)


def _check(path: Path, name: str, shape: Sequence[int], parts: Sequence[Tensor | None]) -> None:
    """Refuse what does not describe entries of a weight of this shape."""
    indices, values, folded, numbers = parts
    pairs = (indices, values, _VALUES), (folded, numbers, _NUMBERS)
    for flat, paired, kinds in pairs:
        if flat is None or paired is None:
            if flat is paired and flat is folded:
                continue
            raise RecordError(f"{path}: {name}: half of its entries are missing")
        known = flat.dtype in _INDICES and paired.dtype in kinds
        if not known or flat.dim() != 1 or flat.shape != paired.shape:
            raise RecordError(f"{path}: {name}: its indices and values do not belong together")
        wide = flat.to(torch.int64)
        inside = not len(wide) or (wide[0] >= 0 and wide[-1] < shape[0] * shape[1])
        if not inside or not bool((wide[1:] > wide[:-1]).all()):
            raise RecordError(
                f"{path}: {name}: its indices are not ascending inside shape {list(shape)}"
            )
    if indices is not None and folded is not None and not bool(torch.isin(indices, folded).all()):
        raise RecordError(f"{path}: {name}: entries of its mask are not among those of all masks")
