"""Find where prefixes of the order end: of entries in chunks, of hashes, and of units in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.backend import Backend, Units
from deltalens.numerics.selection.counts import Counts
from deltalens.numerics.selection.keys import Sample, Source
from deltalens.numerics.selection.prefix import EVERYTHING, NOTHING, Boundary, tie_comparison
from deltalens.numerics.selection.search import search
from deltalens.numerics.selection.searches import KnownBoundary, RadixSearch, RankSearch
from deltalens.numerics.selection.streamed import Stream, hashes_of
from deltalens.numerics.selection.windows import (
    Observed,
    Window,
    window_from_sample,
    windows_by_share,
)
from deltalens.numerics.workers import Mapper, serial_map

__all__ = [
    "SampledBoundary",
    "UnitThresholds",
    "count",
    "draw",
    "find_boundaries",
    "find_boundary",
    "find_random_boundaries",
    "rank_units",
]


# --- chunks ---------------------------------------------------------------------------------------


def count(source: Source, mapper: Mapper = serial_map) -> Counts | None:
    """Count the magnitudes of all chunks of a source.

    Args:
        source: the chunks.
        mapper: how the parts are visited.

    Returns:
        The counts; None if there are no chunks.
    """
    return Stream(source, mapper).count()


def _check(sizes: Sequence[int], total: int) -> None:
    if any(not 0 <= size <= total for size in sizes):
        raise IndexError(f"prefixes of {sorted(sizes)} entries, in a unit of {total}")


def find_boundaries(
    source: Source,
    sizes: Sequence[int],
    seed: int = 0,
    counts: Counts | None = None,
    mapper: Mapper = serial_map,
) -> list[Boundary]:
    """Find the boundaries of prefixes of given sizes, all in the same passes.

    By radix: the counts name the bin of every boundary, another pass over those bins resolves fp32,
    and hashes are computed only for entries that tie at a boundary.

    Args:
        source: the unit's chunks, all of one dtype (fp16, bf16, fp32, fp64), without NaN.
        sizes: the number of entries of each prefix, from 0 to the unit's total.
        seed: seed of the hash that breaks ties.
        counts: counts of the same source, if they exist already.
        mapper: how the parts are visited (`workers.workers()` visits them on all cores).

    Returns:
        One boundary per size.

    Raises:
        IndexError: a size is outside the unit.
    """
    counts = counts or count(source, mapper)
    total = counts.total if counts else 0
    _check(sizes, total)
    boundaries = {0: NOTHING, total: NOTHING if not total else EVERYTHING}
    inner = sorted({size for size in sizes if 0 < size < total})
    if counts is None or not inner:
        return [boundaries[size] for size in sizes]
    stream, ranks = Stream(source, mapper, seed), torch.tensor([inner]) - 1
    radix = RadixSearch(counts.dtype, counts.counts.cpu()[None], ranks, 16)
    search([radix], stream.digits)
    rows = [row[0].tolist() for row in (radix.leading, radix.ranks_within, radix.counts_within)]
    tied: dict[int, RankSearch] = {}
    for size, key, rank, tied_count in zip(inner, *rows, strict=True):
        if rank == tied_count - 1:
            boundaries[size] = Boundary(key + 1)
        else:
            tied[size] = RankSearch(windows_by_share(rank, tied_count, key), rank)
    boundaries |= _by_size(tied, search(list(tied.values()), stream.visit))
    return [boundaries[size] for size in sizes]


def _by_size(
    searches: Mapping[int, RankSearch], boundaries: Sequence[Boundary | None]
) -> dict[int, Boundary]:
    return {
        size: boundary
        for size, boundary in zip(searches, boundaries, strict=True)
        if boundary is not None
    }


class SampledBoundary(NamedTuple):
    """The result of `find_boundary`."""

    boundary: Boundary | None
    """The boundary; None if the sample was misleading."""
    zeros: int
    """Number of entries that are exactly 0."""
    finite: bool
    """Whether all entries are finite."""


def find_boundary(
    source: Source,
    size: int,
    total: int,
    sample: Iterable[Sample],
    seed: int = 0,
    mapper: Mapper = serial_map,
) -> SampledBoundary:
    """Find the boundary of one prefix in one pass, by a window from a sample.

    For a single size this is several times cheaper than counting, which serves all sizes.

    Memory: the entries in the window, about a fiftieth of the unit.

    Args:
        source: the unit's chunks, all of one dtype (fp16, bf16, fp32, fp64).
        size: the number of entries of the prefix, from 0 to `total`.
        total: the number of entries of the unit.
        sample: entries of the unit, `sample_stride` apart.
        seed: seed of the hash that breaks ties.
        mapper: how the parts are visited.

    Returns:
        The boundary, if the sample's window held it, and what the pass saw otherwise.

    Raises:
        IndexError: the size is outside the unit.
    """
    _check([size], total)
    target: RankSearch | KnownBoundary = KnownBoundary(
        iter([Window(0, 0)]), EVERYTHING if size else NOTHING
    )
    if 0 < size < total:
        target = RankSearch(iter([window_from_sample(sample, size - 1, total, seed)]), size - 1)
    stream, zeros, finite = Stream(source, mapper, seed, count_all=True), 0, True

    def visit(windows: Sequence[Window]) -> list[Observed]:
        nonlocal zeros, finite
        (observed,) = stream.visit(windows)
        zeros, finite = observed.zeros, observed.finite
        return [observed]

    (boundary,) = search([target], visit)
    return SampledBoundary(boundary, zeros, finite)


# --- hashes ---------------------------------------------------------------------------------------


def find_random_boundaries(
    source: Source, total: int, sizes: Sequence[int], mapper: Mapper = serial_map
) -> list[Boundary]:
    """Find the boundaries of prefixes of the order by hash alone: random drops of exact size.

    Args:
        source: the hashes of the unit's entries.
        total: the number of entries.
        sizes: the number of entries of each prefix.
        mapper: how the parts are visited.

    Returns:
        One boundary per size.

    Raises:
        IndexError: a size is outside the unit.
    """
    _check(sizes, total)
    inner = {size for size in sizes if 0 < size < total}
    searches = {
        size: RankSearch(windows_by_share(size - 1, total), size - 1) for size in sorted(inner)
    }
    boundaries = {0: NOTHING, total: NOTHING if not total else EVERYTHING}
    boundaries |= _by_size(searches, search(list(searches.values()), Stream(source, mapper).visit))
    return [boundaries[size] for size in sizes]


def draw(
    sizes: Mapping[str, int],
    count: int,
    seed: int,
    mapper: Mapper = serial_map,
    device: torch.device | str = "cpu",
) -> tuple[Boundary, dict[str, Tensor]]:
    """Draw the first `count` entries of a unit in the order by hash, in one pass.

    The masks are written before the last drawn entry is known; the few entries near it are
    corrected afterwards.

    Memory: a byte per entry.

    Args:
        sizes: tensor name -> number of entries, for the tensors of the unit.
        count: the number of entries to draw: more than none, fewer than all.
        seed: seed of the draw.
        mapper: how the parts are visited.
        device: where the masks are made.

    Returns:
        The boundary, and for every tensor a mask of the drawn entries: bool, 1-D.
    """
    masks = {name: torch.empty(n, dtype=torch.bool, device=device) for name, n in sizes.items()}
    observed: list[Observed] = []
    hashes = hashes_of(sizes, seed, torch.device(device))
    stream = Stream(hashes, mapper, masks=masks)

    def visit(windows: Sequence[Window]) -> list[Observed]:
        observed[:] = stream.visit(windows)
        return observed

    target = RankSearch(windows_by_share(count - 1, sum(sizes.values())), count - 1)
    (boundary,) = search([target], visit)
    assert boundary is not None
    assert boundary.tie is not None
    for name, _, indices, candidate_hashes, _ in observed[0].candidates:
        near_hashes, mask = torch.from_numpy(candidate_hashes), masks[name]
        drawn = torch.empty_like(near_hashes, dtype=torch.bool)
        tie_comparison(boundary.tie, name)(near_hashes, boundary.tie.hash, out=drawn)
        mask[torch.from_numpy(indices).to(mask.device)] = drawn.to(mask.device)
    return boundary, masks


# --- units in memory ------------------------------------------------------------------------------


class UnitThresholds(NamedTuple):
    """Thresholds of units of tensors, at several ranks."""

    bits: Sequence[Sequence[int | Tensor]]
    """For each unit and rank: the magnitude bits of the threshold."""
    masks: Sequence[Sequence[Sequence[PackedMask]]]
    """For each unit, tensor and rank: a mask of the entries that reach the threshold."""


def rank_units(
    backend: Backend,
    units: Units,
    counts: Sequence[Sequence[Counts]],
    ranks: Sequence[Sequence[int]],
    kept: Sequence[Sequence[PackedMask]] | None = None,
) -> UnitThresholds:
    """Find the thresholds of units, and mask the entries that reach them: ties stay (GMT, Eq. 3).

    Args:
        backend: where the tensors are.
        units: tensors that are ranked together, without NaN (on a device, masks of units with a NaN
            are all false).
        counts: what the backend counted for them.
        ranks: the ranks of each unit's thresholds, 0-based and ascending; the same number for all
            units.
        kept: for each unit and tensor a mask, if what lies below the threshold at a single rank is
            to be set to zero in place; everything else is marked in the mask.

    Returns:
        The thresholds and the masks.
    """
    visit = backend.visit(units, counts, ranks, kept)
    return UnitThresholds(visit.finish(search(visit.searches(), visit)), visit.masks)
