"""Transformer blocks in parameter names, and groups of consecutive blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltalens.errors import DeltaLensError

__all__ = [
    "Group",
    "block_number",
    "block_numbers",
    "block_of",
    "block_stacks",
    "group_blocks",
    "in_block",
    "is_block",
    "is_number",
    "split_block",
]


def is_number(part: str) -> bool:
    """Whether a component of a name is a block number, written without leading zeros or signs.

    Args:
        part: between two dots.

    Returns:
        Whether it is one.
    """
    return part.isdecimal() and len(part) < 10 and part == str(int(part))


def split_block(layer: str) -> tuple[str, int, str]:
    """Split a layer's name at the number of its block, the first integer component.

    Args:
        layer: a layer's or parameter's name.

    Returns:
        The name of the list of blocks, the block number, and the rest of the name; the whole name,
        -1 and an empty string if the layer is in no block.

    Example:
        >>> split_block("model.layers.7.mlp.up_proj")
        ('model.layers', 7, 'mlp.up_proj')
    """
    parts = layer.split(".")
    for index, part in enumerate(parts):
        if is_number(part):
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return layer, -1, ""


def block_of(name: str) -> str:
    """Return the name of a parameter's block.

    Args:
        name: a parameter's or layer's name.

    Returns:
        The name up to and including its first integer component; the whole name if it has none.

    Example:
        >>> block_of("model.layers.7.mlp.up_proj.weight")
        'model.layers.7'
    """
    parts = name.split(".")
    for index, part in enumerate(parts):
        if is_number(part):
            return ".".join(parts[: index + 1])
    return name


def is_block(name: str) -> bool:
    """Tell whether a name is that of a block.

    Args:
        name: a result of `block_of`.

    Returns:
        True if the name ends in a block number; False for a parameter outside all blocks.
    """
    return is_number(name.rpartition(".")[2])


def in_block(name: str) -> bool:
    """Tell whether a parameter belongs to a block.

    Args:
        name: a parameter's or layer's name.

    Returns:
        True if the name has an integer component.
    """
    return block_of(name) != name


def block_number(name: str) -> int | None:
    """Return the number of a parameter's block.

    Args:
        name: a parameter's or layer's name.

    Returns:
        The block number; None if the parameter is in no block.
    """
    block = block_of(name)
    return int(block.rpartition(".")[2]) if block != name else None


def block_numbers(names: Iterable[str]) -> list[int]:
    """Collect the block numbers of several parameters.

    Args:
        names: parameter names.

    Returns:
        The distinct block numbers, ascending.
    """
    return sorted({number for name in names if (number := block_number(name)) is not None})


def block_stacks(names: Iterable[str]) -> set[str]:
    """Collect the lists of blocks that parameters belong to.

    Args:
        names: parameter names.

    Returns:
        Names such as `model.layers`; an encoder-decoder model has two.
    """
    return {block_of(name).rpartition(".")[0] for name in names if in_block(name)}


@dataclass(frozen=True)
class Group:
    """Consecutive blocks."""

    size: int
    """The requested number of blocks per group; the last group may hold fewer."""
    blocks: tuple[int, ...]
    """Block numbers, ascending."""

    def __str__(self) -> str:
        first, last = self.blocks[0], self.blocks[-1]
        return f"{first}-{last}" if last > first else f"{first}"


def group_blocks(numbers: Sequence[int], size: int, model: object) -> list[Group]:
    """Divide the blocks of a model into consecutive groups of equal size.

    Args:
        numbers: block numbers, ascending.
        size: blocks per group.
        model: the model's name or path, for the error message.

    Returns:
        The groups in order; the last may hold fewer blocks than the others.

    Raises:
        DeltaLensError: the size is not between 1 and the number of blocks.
    """
    if not 1 <= size <= len(numbers):
        raise DeltaLensError(
            f"groups of {size}: must be from 1 to {len(numbers)}, the number of blocks in {model}"
        )
    starts = range(0, len(numbers), size)
    return [Group(size, tuple(numbers[start : start + size])) for start in starts]
