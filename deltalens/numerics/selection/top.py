"""Keep the highest entries of tensors that are ranked together, by magnitude or by signed value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from deltalens.numerics.hashing import name_key
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.keep import KeepVisit
from deltalens.numerics.selection.keys import keys_of
from deltalens.numerics.selection.prefix import Boundary
from deltalens.numerics.selection.search import Search, search
from deltalens.numerics.selection.searches import KnownBoundary, RankSearch
from deltalens.numerics.selection.windows import Observed, Window, windows_from_tensors

__all__ = ["Ties", "keep_top"]

Ties = Literal["hash", "keep"]
"""What happens to entries that tie with the last one kept: their hashes decide, or all stay."""


class _UnitVisit:
    """Marks the entries of several tensors that lie above one window.

    In torch: this is done once before a training, which compiled loops would stay loaded in.
    """

    def __init__(self, tensors: Mapping[str, Tensor], by_value: bool, seed: int) -> None:
        self.visits = {
            name: KeepVisit(values, name, by_value, name_key(seed, name), compiled=False)
            for name, values in tensors.items()
        }

    def __call__(self, windows: Sequence[Window]) -> list[Observed]:
        total = Observed()
        for visit in self.visits.values():
            (observed,) = visit(windows)
            total.add(observed)
        return [total]


def keep_top(
    tensors: Mapping[str, Tensor],
    count: int,
    *,
    by_value: bool = False,
    seed: int = 0,
    ties: Ties = "hash",
) -> dict[str, PackedMask]:
    """Mask the `count` highest entries of a unit.

    Args:
        tensors: the unit, by tensor name: 1-D, contiguous, all of one dtype (fp16, bf16, fp32 or
            fp64); on any devices.
        count: the number of entries kept, from 0 to all.
        by_value: rank signed values (0 and -0 tie) rather than magnitudes.
        seed: seed of the hash that breaks ties.
        ties: `hash` keeps exactly `count` entries, of those that tie the ones with the greatest
            hashes; `keep` keeps all that tie with the last one kept, so that there may be more.

    Returns:
        A mask per tensor, true where an entry is kept.

    Raises:
        DeltaLensError: there is a NaN; the error names the tensor.
        IndexError: the count is outside the unit.
    """
    total = sum(values.numel() for values in tensors.values())
    if not 0 <= count <= total:
        raise IndexError(f"{count} of {total} entries")
    visit, removed = _UnitVisit(tensors, by_value, seed), total - count
    target: Search[Window, Observed, Boundary]
    if not count or not removed:
        ends = torch.iinfo(keys_of(next(iter(tensors.values()))[:0]).dtype) if tensors else None
        key = 0 if ends is None else (ends.max if count == 0 else ends.min)
        target = KnownBoundary(iter([Window(key, key)]), Boundary(key))
    else:
        windows = windows_from_tensors(list(tensors.values()), removed - 1, by_value)
        target = RankSearch(windows, removed - 1)
    (boundary,) = search([target], visit)
    assert boundary is not None
    if ties == "keep":
        boundary = Boundary(boundary.below)
    for part in visit.visits.values():
        part.finish(boundary)
    return {name: part.mask for name, part in visit.visits.items()}
