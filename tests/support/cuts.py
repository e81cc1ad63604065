"""Cut the work small: chunks, parts, hashed pieces and searched windows of a few entries.

No field of `deltalens.numerics.sizes.Sizes` may change a result; made small, a few entries cross
all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from deltalens.numerics.sizes import SIZES


@dataclass(frozen=True)
class Cut:
    """How small."""

    chunk: int = SIZES.chunk
    """Entries visited at a time, in memory and of files."""
    part: int = SIZES.part
    hashed: int = SIZES.hashed
    sigmas: float = SIZES.hash_sigmas
    """How far around a rank's share its hash is looked for first; small ones miss and go on."""
    sample: int = SIZES.unit_sample
    """Entries from which a bracket is guessed."""
    question: int = SIZES.chunk
    """Entries per question to a selection."""


@contextmanager
def resized(**sizes: float) -> Iterator[None]:
    """Use these sizes everywhere: fields of `Sizes`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(SIZES, name, size)
        yield


@contextmanager
def cut(how: Cut) -> Iterator[None]:
    """Cut the work this small everywhere."""
    with resized(
        chunk=how.chunk,
        file_chunk=how.chunk,
        part=how.part,
        hashed=how.hashed,
        unit_sample=how.sample,
        hash_sigmas=how.sigmas,
        sample_sigmas=how.sigmas / 3,
    ):
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch have so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
