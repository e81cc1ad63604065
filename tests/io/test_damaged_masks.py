"""A file of masks says what was written, or is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from deltalens.errors import CheckpointError
from deltalens.io.checksum import CHECKSUM
from deltalens.io.mask_file import MaskFile, StoredMask, masks_checksum, read_masks, write_masks

pytestmark = pytest.mark.bad_input

ABOUT = {"method": "mft", "mask_ratio": "0.1"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    masks = [
        StoredMask(f"model.layers.{n}.{name}", shape, f"{n}abcdef", draws.integers(0, 256, size))
        for n in range(3)
        for name, shape, size in (("q", (8, 4), 4), ("up", (5, 5), 4))
    ]
    for place, one in enumerate(masks):
        masks[place] = StoredMask(one.name, one.shape, one.digest, one.bits.astype(np.uint8))
    write_masks(tmp_path / "masks.safetensors", masks, ABOUT)
    return tmp_path / "masks.safetensors"


def held(found: MaskFile) -> Any:
    return found.about, found.fingerprint, [(m.name, m.shape, m.bits.tolist()) for m in found.masks]


def rewrite(file: Path, change: Callable[[dict[str, str]], Any], *, sealed: bool = True) -> None:
    """Change the metadata as somebody would who knows the checksum, or write none."""
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(metadata)
    metadata.pop(CHECKSUM)
    if sealed:
        metadata[CHECKSUM] = masks_checksum(metadata, tensors["kept"])
    save_file(tensors, file, metadata)


def test_a_flipped_bit_is_refused_or_changes_nothing(file: Path) -> None:
    raw, clean, draw, refused = file.read_bytes(), held(read_masks(file)), random.Random(0), 0
    for at in [*range(8), *(draw.randrange(len(raw)) for _ in range(400)), *range(-24, 0)]:
        at %= len(raw)
        file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :])
        try:
            assert held(read_masks(file)) == clean
        except CheckpointError:
            refused += 1
    assert refused > 400


def test_masks_of_the_first_format_are_read(file: Path) -> None:
    clean = held(read_masks(file))
    rewrite(file, lambda said: said.update(format="deltalens masks 1"), sealed=False)
    assert held(read_masks(file)) == clean


def test_masks_of_this_format_without_a_checksum_are_refused(file: Path) -> None:
    rewrite(file, lambda said: None, sealed=False)
    with pytest.raises(CheckpointError, match="damaged: its checksum"):
        read_masks(file)


LAYERS = [["model.layers", [0, 1, 2], "q", [8, 4]], ["model.layers", [0, 1, 2], "up", [5, 5]]]


@pytest.mark.parametrize(
    "layers",
    [
        None,
        [],
        [7],
        [["model.layers", [0, 1, 2], "q"]],
        [["model.layers", [0.5], "q", [8, 4]], LAYERS[1]],
        [["model.layers", [0, 1, 2], "q", [-8, 4]], LAYERS[1]],
        [["model.layers", [0, 1, 2], "q", [10**30, 4]], LAYERS[1]],
        [["model.layers", [0, 1, 2], "q", ["8", 4]], LAYERS[1]],
        [["model.layers", [0, 1, 1], "q", [8, 4]], LAYERS[1]],
        [["model.layers", [0, 1, 2], "q", [1] * 1000], LAYERS[1]],
        "[" * 10_000,
    ],
    ids=str,
)
def test_layers_that_are_none_are_refused(file: Path, layers: Any) -> None:
    text = layers if isinstance(layers, str) else json.dumps(layers)
    rewrite(file, lambda said: said.update(layers=text))
    with pytest.raises(CheckpointError, match=r"masks\.safetensors"):
        read_masks(file)


@pytest.mark.parametrize("name", ["layers", "about", "fingerprint", "digests"])
def test_a_file_that_lacks_what_is_read_names_it(file: Path, name: str) -> None:
    rewrite(file, lambda said: said.pop(name))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_masks(file)
