"""Pairs of checkpoints made of tiny models of real architectures.

A fine-tune is its base plus structured noise: a low-rank part, a few large entries, and entries
that did not change at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.models import FAMILIES, initialized, save

SHARD = "6KB"
"""Small enough that every pair here has several shards."""

States = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """Which pair: everything that a test may want to vary."""

    family: str = "llama"
    dtype: torch.dtype = torch.float32
    sharded: bool = False
    tied: bool = False

    def __str__(self) -> str:
        return "-".join(
            (
                self.family,
                str(self.dtype).removeprefix("torch."),
                "sharded" if self.sharded else "single",
                "tied" if self.tied else "untied",
            )
        )


@dataclass(frozen=True)
class Pair:
    """Two checkpoint folders."""

    ft: Path
    base: Path


def write_pair(folder: Path, kind: Kind) -> Pair:
    """A base and its fine-tune, both with a tokenizer."""
    model = initialized(lambda: FAMILIES[kind.family](kind.tied), seed=1)
    return save_pair(folder, model, kind.dtype, SHARD if kind.sharded else "1GB")


def save_pair(
    folder: Path, model: Any, dtype: torch.dtype = torch.float32, shard: str = "1GB"
) -> Pair:
    """Save a model as the base, fine-tune it, and save that."""
    pair = Pair(folder / "ft", folder / "base")
    model = model.to(dtype)
    save(model, pair.base, shard)
    fine_tune(model)
    save(model, pair.ft, shard)
    return pair


@torch.no_grad()
def fine_tune(model: Any, seed: int = 2, scale: float = 0.2) -> None:
    """Add structured noise to every parameter, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        shape = parameter.shape
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            rank_one = torch.randn(shape[:-1], generator=generator).unsqueeze(-1) * torch.randn(
                shape[-1], generator=generator
            )
            noise = 0.3 * noise + rank_one
        heavy = torch.rand(shape, generator=generator) < 0.05
        changed = torch.rand(shape, generator=generator) < 0.7
        noise = scale * noise * (1 + 4 * heavy) * changed
        parameter.add_(noise.to(parameter.dtype))


def plain(folder: Path, dtype: Any = "auto") -> Any:
    """Load as plain transformers does, knowing nothing of deltalens."""
    config = transformers.AutoConfig.from_pretrained(folder)
    masked = config.architectures[0].endswith("ForMaskedLM")
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model


def state_of(model: Any) -> States:
    """A copy of all that a model holds."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(one: States, other: States) -> list[str]:
    """Names of tensors that are not the same, bit for bit, in dtype and in shape."""
    assert one.keys() == other.keys()
    return [name for name in one if not _same_bits(one[name], other[name])]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(
        one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
    )


PairOf = Callable[..., Pair]


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> PairOf:
    """Pairs of checkpoints, each written once a session: `pair_of(family="gpt2", tied=True)`."""
    made: dict[Kind, Pair] = {}

    def give(kind: Kind | None = None, /, **fields: object) -> Pair:
        kind = kind or Kind(**fields)  # type: ignore[arg-type]
        if kind not in made:
            folder: Path = tmp_path_factory.mktemp(str(kind))
            made[kind] = write_pair(folder, kind)
        return made[kind]

    return give
