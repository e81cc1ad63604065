"""The masks of a salience study: on disk, their overlap, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from deltalens.io.mask_file import StoredMask, read_masks, write_masks
from deltalens.io.records import Measurement
from deltalens.methods.mask_layers import Layer
from deltalens.methods.weight_masks import weight_digest
from deltalens.names import block_of, in_block
from deltalens.numerics.masks import PackedMask, compare, expected_jaccard, jaccard
from deltalens.scoring.suite import Metrics
from deltalens.studies.salience.spec import ALL

__all__ = ["Masks", "budgets", "mask_path", "overlap", "read", "write"]

Masks = Mapping[str, PackedMask]
"""Weight name -> mask of the entries that are kept, on the CPU."""


def mask_path(folder: Path, metric: str) -> Path:
    """Name the file of a metric's mask.

    Args:
        folder: of the study.
        metric: the metric.

    Returns:
        Its path.
    """
    return folder / "masks" / f"{metric}.safetensors"


def write(folder: Path, metric: str, masks: Masks, layers: list[Layer], about: Any) -> None:
    """Write a metric's mask.

    Args:
        folder: of the study.
        metric: the metric.
        masks: its masks.
        layers: the layers whose weights they mask.
        about: how the mask was made, as JSON values.
    """
    path = mask_path(folder, metric)
    path.parent.mkdir(exist_ok=True)
    stored = [
        StoredMask(
            layer.name,
            tuple(layer.module.get_parameter("weight").shape),
            weight_digest(layer.module.get_parameter("weight")),
            _bits(masks[layer.weight_name]),
        )
        for layer in layers
    ]
    write_masks(path, stored, about)


def _bits(mask: PackedMask) -> Any:
    return mask.bytes[: -(-mask.size // 8)].numpy()


def read(folder: Path, metric: str) -> dict[str, PackedMask]:
    """Read a metric's mask.

    Args:
        folder: of the study.
        metric: the metric.

    Returns:
        Its masks.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    masks = {}
    for stored in read_masks(mask_path(folder, metric)).masks:
        packed = PackedMask(int(torch.tensor(stored.shape).prod()))
        packed.bytes[: stored.bits.size] = torch.from_numpy(stored.bits)
        masks[f"{stored.name}.weight"] = packed
    return masks


def overlap(one: Masks, other: Masks) -> Metrics:
    """Compare two masks of the same weights.

    Args:
        one: the one.
        other: the other.

    Returns:
        `jaccard`, and `chance`: what two random masks of the same sizes would have.
    """
    kept, common, kept_other, entries = 0, 0, 0, 0
    for name, mask in one.items():
        counts = compare(mask, [None, None, other[name]], mask.copy()).tolist()
        kept, common, kept_other = kept + counts[0], common + counts[3], kept_other + counts[5]
        entries += mask.size
    return {
        "jaccard": Measurement(jaccard(common, kept, kept_other), n=kept),
        "chance": Measurement(expected_jaccard(kept, kept_other, entries), n=entries),
    }


def budgets(masks: Masks) -> Iterator[tuple[str, Metrics]]:
    """Count what a mask keeps, in all and in each kind of layer of each block.

    Args:
        masks: the masks.

    Yields:
        `all`, or block and the layer's name in it, as `model.layers.3/self_attn.q_proj`; and the
        `density` there, of n weights, and `kept`, how many those are.
    """
    sums: dict[str, list[int]] = {ALL: [0, 0]}
    for name, mask in masks.items():
        kept = int(mask.count())
        for place in (ALL, place_of(name)):
            total = sums.setdefault(place, [0, 0])
            total[0] += kept
            total[1] += mask.size
    for place, (kept, size) in sums.items():
        yield (
            place,
            {"density": Measurement(kept / size, n=size), "kept": Measurement(kept, n=size)},
        )


def place_of(name: str) -> str:
    """Say where a weight lies.

    Args:
        name: its name.

    Returns:
        Its block and the layer's name inside the block, with a slash between them; the layer's name
        if it is in no block.
    """
    layer = name.removesuffix(".weight")
    if not in_block(layer):
        return layer
    block = block_of(layer)
    return f"{block}/{layer.removeprefix(block).removeprefix('.')}"
