"""Pairs of checkpoints for tests, written by the safetensors library; tensors of every nature."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.oracles.order import FORMATS

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

KINDS = ("grid", "equal", "zeros", "sparse", "normal", "any", "subnormal", "near")
"""Natures of a tensor: ties on a coarse grid, one value, nothing, mostly zero with some -0, a bell,
any finite bit pattern (huge and tiny), the smallest numbers, and neighbors in the last bits."""


def as_bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, flat."""
    return tensor.contiguous().view(-1).view(INTEGERS[tensor.element_size()])


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(as_bits(one), as_bits(other))
    )


def make(kind: str, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A finite tensor of one nature."""
    draw = np.random.default_rng(seed)
    form = FORMATS[dtype]
    negative = draw.integers(0, 2, n)
    if kind == "any":
        sizes = draw.integers(0, form.infinity, n)
    elif kind == "subnormal":
        sizes = draw.integers(0, min(9, 1 << form.fraction), n)
    elif kind == "near":
        one = form.bias << form.fraction
        steps = [16 * digit for digit in range(form.bits // 16)]
        sizes = one + draw.integers(0, 4, n) * (1 << draw.choice(steps, n))
        sizes += draw.integers(0, 2, n)
    else:
        values = {
            "grid": draw.integers(-3, 4, n) / 64,
            "equal": np.full(n, -0.375),
            "zeros": np.zeros(n),
            "sparse": np.where(draw.random(n) < 0.2, draw.normal(size=n), 0.0),
            "normal": draw.normal(size=n),
        }[kind]
        if kind in ("zeros", "sparse"):
            values = np.where(draw.random(n) < 0.5, -values, values)
        return torch.from_numpy(values).to(dtype)
    # As a signed integer the sign bit counts -2^(bits - 1).
    bits = sizes.astype(np.int64) + np.where(negative == 1, np.int64(-1) << (form.bits - 1), 0)
    return torch.from_numpy(bits).to(INTEGERS[dtype.itemsize]).view(dtype)


@st.composite
def tensors(
    draw: st.DrawFn, dtype: torch.dtype, most: int = 60, count: int = 4
) -> dict[str, Tensor]:
    """A named set of tensors, some of them empty."""
    names = draw(
        st.lists(
            st.sampled_from(["a", "b", "a.b", "z.9.w", "z.10.w", "B", "é", "\U0001f600"]),
            min_size=1,
            max_size=count,
            unique=True,
        )
    )
    return {
        name: make(
            draw(st.sampled_from(KINDS)),
            draw(st.one_of(st.integers(0, 3), st.integers(0, most))),
            dtype,
            draw(st.integers(0, 1 << 16)),
        )
        for name in names
    }


def write_checkpoint(
    folder: Path,
    stored: Mapping[str, Tensor],
    shards: Sequence[Sequence[str]] | None = None,
    config: Mapping[str, object] | None = None,
) -> Path:
    """A checkpoint folder: one file, or these shards with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config or {})))
    tight = {name: tensor.contiguous() for name, tensor in stored.items()}
    if shards is None:
        save_file(tight, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: tight[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, read by the safetensors library."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found
