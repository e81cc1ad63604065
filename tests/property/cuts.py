"""Cut the work small: chunks, parts, hashed pieces and searched windows of a few entries.

None of these constants may change a result; made small, a few entries cross all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from deltalens.numerics import hashing
from deltalens.numerics.selection import bracket, drawing, threshold
from deltalens.numerics.selection import counts as histogram
from deltalens.numerics.selection import find as order
from deltalens.numerics.selection import windows as ties
from deltalens.studies import deltas


@dataclass(frozen=True)
class Sizes:
    """Everything that may be cut differently without changing any result."""

    chunk: int = 1 << 18
    part: int = 1 << 22
    hashed: int = 1 << 15
    sigmas: float = 8.0
    """How far around a rank's share its hash is looked for first; small ones miss and go on."""
    sample: int = 1 << 14
    """Entries from which a bracket is guessed."""
    asked: int = 1 << 18
    """Entries per question to a selection."""


@contextmanager
def cut(sizes: Sizes) -> Iterator[None]:
    """Use these sizes everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "CHUNK", sizes.chunk)
        patch.setattr(order, "PART", sizes.part)
        patch.setattr(histogram, "CHUNK", sizes.chunk)
        patch.setattr(threshold, "CHUNK", sizes.chunk)
        patch.setattr(threshold, "PART", sizes.part)
        patch.setattr(bracket, "_SAMPLE", sizes.sample)
        patch.setattr(bracket, "_SIGMAS", sizes.sigmas / 3)
        patch.setattr(deltas, "_CPU_CHUNK", sizes.chunk)
        patch.setattr(deltas, "_PART", sizes.part)
        patch.setattr(hashing, "HASHED", sizes.hashed)
        patch.setattr(ties, "SIGMAS", sizes.sigmas)
        patch.setattr(drawing, "SIGMAS", sizes.sigmas)
        patch.setattr(drawing, "_PART", sizes.part)
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
