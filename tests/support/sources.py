"""Tensors in memory as the sources that a search over files takes."""

import functools
from collections.abc import Iterator, Mapping

from torch import Tensor

from deltalens.numerics.selection import Chunk, Source
from deltalens.numerics.sizes import SIZES


def parts_of(tensors: Mapping[str, Tensor]) -> Source:
    """Tensors in memory, in parts of a few chunks."""

    def part(name: str, flat: Tensor, first: int, stop: int) -> Iterator[Chunk]:
        for start in range(first, stop, SIZES.chunk):
            yield Chunk(name, start, flat[start : min(start + SIZES.chunk, stop)])

    flats = {name: tensor.detach().contiguous().view(-1) for name, tensor in tensors.items()}
    return [
        functools.partial(part, name, flat, start, min(start + SIZES.part, flat.numel()))
        for name, flat in flats.items()
        for start in range(0, flat.numel(), SIZES.part)
    ]
