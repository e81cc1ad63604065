"""What the names of parameters say: the block, and what is ranked together. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from deltalens.errors import DeltaLensError

__all__ = [
    "SCOPES",
    "Scope",
    "block_number",
    "block_of",
    "check_scope",
    "in_block",
    "stacks_of",
    "unit_of",
]

Scope = Literal["tensor", "layer", "global"]
"""What is ranked together: every tensor for itself, a transformer block, or all of them."""
SCOPES: tuple[Scope, ...] = get_args(Scope)


def block_of(name: str) -> str:
    """A parameter's block: its name up to and including the first integer component, or all of it.

    Example:
        >>> block_of("model.layers.7.mlp.up_proj.weight")
        'model.layers.7'
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: place + 1])
    return name


def in_block(name: str) -> bool:
    """Whether a parameter belongs to a block."""
    return block_of(name) != name


def block_number(name: str) -> int | None:
    """The number of a parameter's block; None if it is in none."""
    block = block_of(name)
    return int(block.rpartition(".")[2]) if block != name else None


def stacks_of(names: Iterable[str]) -> set[str]:
    """The lists of blocks that parameters belong to: `model.layers`, ..."""
    return {block_of(name).rpartition(".")[0] for name in names if in_block(name)}


def unit_of(name: str, scope: Scope) -> str:
    """With which others a parameter is ranked: all those of which this says the same. Outside the
    blocks, `layer` ranks every parameter for itself."""
    if scope == "tensor":
        return name
    return block_of(name) if scope == "layer" else "all"


def check_scope(scope: str) -> Scope:
    """A scope's name, checked.

    Raises:
        DeltaLensError: it is none of tensor, layer, global.
    """
    for known in SCOPES:
        if scope == known:
            return known
    raise DeltaLensError(f"scope {scope!r}: choose one of {', '.join(SCOPES)}")
