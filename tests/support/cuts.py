"""Cut the work small: chunks, parts, hashed pieces and searched windows of a few entries.

None of these constants may change a result; made small, a few entries cross all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from deltalens.numerics import hashing
from deltalens.numerics.selection import counts, keys, streamed, windows
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
    question: int = 1 << 18
    """Entries per question to a selection."""


@contextmanager
def cut(sizes: Sizes) -> Iterator[None]:
    """Use these sizes everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "CHUNK", sizes.chunk)
        patch.setattr(keys, "PART", sizes.part)
        patch.setattr(counts, "CHUNK", sizes.chunk)
        patch.setattr(keys, "_SAMPLE", sizes.sample)
        patch.setattr(windows, "_SAMPLED_SIGMAS", sizes.sigmas / 3)
        patch.setattr(deltas, "_CPU_CHUNK", sizes.chunk)
        patch.setattr(deltas, "_PART", sizes.part)
        patch.setattr(hashing, "HASHED", sizes.hashed)
        patch.setattr(windows, "SIGMAS", sizes.sigmas)
        patch.setattr(streamed, "_PART", sizes.part)
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
