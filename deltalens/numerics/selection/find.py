"""The one search, and the functions that run it for all that is ranked.

It takes a window that holds the end of a prefix, visits the entries once, settles those inside, and
takes another window on a miss. What differs is the key (magnitude, signed value, hash), where the
window comes from (`windows`), what a visit does with what lies outside (`streamed`: nothing, or a
mask; `cpu` and `device`: bits of masks, or zeros in place; `keep`: bits), and whether ties are
split by hash or stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from deltalens.errors import errors_from
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.backend import Backend, Units
from deltalens.numerics.selection.counts import Counts
from deltalens.numerics.selection.keep import KeepVisit
from deltalens.numerics.selection.keys import Sample, Source, keys_of
from deltalens.numerics.selection.prefix import EVERYTHING, NOTHING, Boundary, tie_comparison
from deltalens.numerics.selection.streamed import Stream, hashes_of
from deltalens.numerics.selection.windows import (
    KnownBoundary,
    Observed,
    RadixSearch,
    RankSearch,
    Window,
    next_window,
    window_from_sample,
    windows_by_share,
    windows_from_tensor,
)
from deltalens.numerics.workers import Mapper, serial_map

__all__ = [
    "KeptEntries",
    "SampledBoundary",
    "UnitThresholds",
    "compile_keep_loops",
    "count",
    "draw",
    "find_boundaries",
    "find_boundary",
    "find_random_boundaries",
    "keep_above",
    "keep_highest",
    "rank_units",
    "search",
]

W = TypeVar("W")
S = TypeVar("S", contravariant=True)
F = TypeVar("F", covariant=True)


class Search(Protocol[W, S, F]):
    """What is looked for."""

    windows: Iterator[W]
    """Where it may be: one window after the other, until one holds it."""

    def settle(self, window: W, seen: S, /) -> F | None:
        """What is found, from what a visit saw of a window; None if it is not there."""


def search(
    spec: Sequence[Search[W, S, F]], visit: Callable[[Sequence[W]], Sequence[S]]
) -> list[F | None]:
    """Look for several things at once: all that is not found yet shares each visit.

    Args:
        spec: what is looked for.
        visit: goes through the entries once, and says of each window what it saw.

    Returns:
        What was found of each; None where its windows came to an end.
    """
    found: list[F | None] = [None] * len(spec)
    wanted = list(range(len(spec)))
    while True:
        windows = {
            place: window
            for place in wanted
            if (window := next(spec[place].windows, None)) is not None
        }
        if not windows:
            return found
        seen = visit(list(windows.values()))
        for (place, window), some in zip(windows.items(), seen, strict=True):
            found[place] = spec[place].settle(window, some)
        wanted = [place for place in windows if found[place] is None]


# --- chunks ---------------------------------------------------------------------------------------


def count(source: Source, mapper: Mapper = serial_map) -> Counts | None:
    """The magnitudes of all chunks of a source, counted; None if it has none."""
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
    """The boundaries of the prefixes with these many entries, all from the same passes.

    By radix: the counts name the bin of every boundary; another pass over those tells fp32 apart;
    hashes are computed only for entries that tie at a boundary.

    Args:
        source: the unit's chunks, all of one dtype (fp16, bf16, fp32, fp64), without NaN.
        sizes: how many entries each prefix has, from 0 to the unit's total.
        seed: of the hash that settles ties.
        counts: of the same source, if they have been made already.
        mapper: how to visit the parts (`workers.workers()` visits them on all cores).

    Raises:
        IndexError: a size is outside the unit.
    """
    counts = counts or count(source, mapper)
    total = counts.total if counts else 0
    _check(sizes, total)
    found = {0: NOTHING, total: NOTHING if not total else EVERYTHING}
    inner = sorted({size for size in sizes if 0 < size < total})
    if counts is None or not inner:
        return [found[size] for size in sizes]
    stream, ranks = Stream(source, mapper, seed), torch.tensor([inner]) - 1
    radix = RadixSearch(counts.dtype, counts.counts.cpu()[None], ranks, 16)
    search([radix], stream.digits)
    places = [row[0].tolist() for row in (radix.leading, radix.inside, radix.among)]
    split: dict[int, RankSearch] = {}
    for size, key, rank, among in zip(inner, *places, strict=True):
        if rank == among - 1:
            found[size] = Boundary(key + 1)
        else:
            split[size] = RankSearch(windows_by_share(rank, among, key), rank)
    found |= _found(split, search(list(split.values()), stream.visit))
    return [found[size] for size in sizes]


def _found(
    spec: Mapping[int, RankSearch], boundaries: Sequence[Boundary | None]
) -> dict[int, Boundary]:
    return {size: one for size, one in zip(spec, boundaries, strict=True) if one is not None}


class SampledBoundary(NamedTuple):
    """What one pass found."""

    boundary: Boundary | None
    """None if the sample misled."""
    zeros: int
    """Entries that are exactly 0."""
    finite: bool
    """Whether all entries are."""


def find_boundary(
    source: Source,
    size: int,
    total: int,
    sample: Iterable[Sample],
    seed: int = 0,
    mapper: Mapper = serial_map,
) -> SampledBoundary:
    """The boundary of the prefix with so many entries, in one pass: for a single size several times
    cheaper than counts, which serve all.

    Memory: what lies in the window, about a fiftieth of the unit.

    Args:
        source: the unit's chunks, all of one dtype (fp16, bf16, fp32, fp64).
        size: how many entries the prefix has, from 0 to `total`.
        total: entries in the unit.
        sample: of the unit's entries, `sample_stride` apart.
        seed: of the hash that settles ties.
        mapper: how to visit the parts.

    Raises:
        IndexError: the size is outside the unit.
    """
    _check([size], total)
    spec: RankSearch | KnownBoundary = KnownBoundary(
        iter([Window(0, 0)]), EVERYTHING if size else NOTHING
    )
    if 0 < size < total:
        spec = RankSearch(iter([window_from_sample(sample, size - 1, total, seed)]), size - 1)
    stream, zeros, finite = Stream(source, mapper, seed, whole=True), 0, True

    def visit(windows: Sequence[Window]) -> list[Observed]:
        nonlocal zeros, finite
        (seen,) = stream.visit(windows)
        zeros, finite = seen.zeros, seen.finite
        return [seen]

    (boundary,) = search([spec], visit)
    return SampledBoundary(boundary, zeros, finite)


# --- hashes ---------------------------------------------------------------------------------------


def find_random_boundaries(
    source: Source, total: int, sizes: Sequence[int], mapper: Mapper = serial_map
) -> list[Boundary]:
    """The boundaries of prefixes of the order by hash alone: random drops of exact size.

    Args:
        source: the hashes of the unit's entries.
        total: how many those are.
        sizes: how many entries each prefix has.
        mapper: how to visit the parts.

    Raises:
        IndexError: a size is outside the unit.
    """
    _check(sizes, total)
    inner = {size for size in sizes if 0 < size < total}
    spec = {size: RankSearch(windows_by_share(size - 1, total), size - 1) for size in sorted(inner)}
    found = {0: NOTHING, total: NOTHING if not total else EVERYTHING}
    found |= _found(spec, search(list(spec.values()), Stream(source, mapper).visit))
    return [found[size] for size in sizes]


def draw(
    sizes: Mapping[str, int],
    count: int,
    seed: int,
    mapper: Mapper = serial_map,
    device: torch.device | str = "cpu",
) -> tuple[Boundary, dict[str, Tensor]]:
    """The first `count` entries of a unit in the order by hash, in one pass: the masks are made
    before the last entry is known, and the few that lie near it are settled then.

    Memory: a byte per entry.

    Args:
        sizes: the unit's tensors: name -> entries.
        count: how many are drawn: more than none, fewer than all.
        seed: whose randomness.
        mapper: how to visit the parts.
        device: where the masks are made.

    Returns:
        The boundary, and for every tensor a mask of what was drawn: bool, 1-D.
    """
    masks = {name: torch.empty(n, dtype=torch.bool, device=device) for name, n in sizes.items()}
    seen: list[Observed] = []
    hashes = hashes_of(sizes, seed, torch.device(device))
    stream = Stream(hashes, mapper, masks=masks)

    def visit(windows: Sequence[Window]) -> list[Observed]:
        seen[:] = stream.visit(windows)
        return seen

    spec = RankSearch(windows_by_share(count - 1, sum(sizes.values())), count - 1)
    (boundary,) = search([spec], visit)
    assert boundary is not None
    assert boundary.tie is not None
    for name, _, places, inside, _ in seen[0].inside:
        near, mask = torch.from_numpy(inside), masks[name]
        drawn = torch.empty_like(near, dtype=torch.bool)
        tie_comparison(boundary.tie, name)(near, boundary.tie.hash, out=drawn)
        mask[torch.from_numpy(places).to(mask.device)] = drawn.to(mask.device)
    return boundary, masks


# --- tensors in memory ----------------------------------------------------------------------------


class KeptEntries(NamedTuple):
    """What stays of a tensor."""

    mask: PackedMask
    boundary: Boundary
    """Of what goes, in keys: magnitude bits, or those with the value's sign."""
    near: Window | None
    """Where to look first next time, if that is known."""


def keep_highest(
    values: Tensor,
    removed: int,
    key: int,
    *,
    by_value: bool = False,
    name: str = "a tensor",
    near: Window | None = None,
) -> KeptEntries:
    """All but the `removed` lowest entries.

    Args:
        values: 1-D, contiguous; fp16, bf16, fp32 or fp64; on any device.
        removed: how many go, from 0 to n. Of those that tie, the lowest hashes go first.
        key: of the hash (`hashing.name_key`).
        by_value: rank signed values (0 and -0 tie), not magnitudes.
        name: for the message.
        near: what came back for values of this tensor a little earlier: it saves the sample, and
            changes nothing else.

    Raises:
        DeltaLensError: there is a NaN.
    """
    if not 0 <= removed <= values.numel():
        raise IndexError(f"{removed} of {values.numel()} entries")
    keeping = KeepVisit(values, name, by_value, key)
    if not removed:
        every = torch.iinfo(keys_of(values[:0]).dtype).min
        return KeptEntries(_beyond(keeping, every), Boundary(every), None)
    spec = RankSearch(windows_from_tensor(values, removed - 1, by_value, near), removed - 1)
    (boundary,) = search([spec], keeping)
    assert boundary is not None
    keeping.finish(boundary)
    keys = keeping.seen.keys
    last = boundary.below - (boundary.tie is None)
    return KeptEntries(
        keeping.mask, boundary, next_window(near, keeping.window, last, keys, values.numel())
    )


def compile_keep_loops(dtype: torch.dtype) -> None:
    """Compile or load the loops of `keep_highest` for a dtype now, so that no step waits for them.

    Raises:
        DeltaLensError: numba cannot compile them.
    """
    with errors_from("numba", f"the loops for {dtype} cannot be compiled"):
        keep_highest(torch.ones(64, dtype=dtype), 3, 0)


def keep_above(values: Tensor, threshold: float, *, name: str = "a tensor") -> PackedMask:
    """The entries whose value is greater than a threshold, rounded to their dtype.

    Args:
        values, name: as in `keep_highest`.
        threshold: signed; any number but NaN.

    Raises:
        DeltaLensError: there is a NaN.
    """
    end = int(keys_of(torch.tensor([threshold], dtype=values.dtype), True)) + 1
    return _beyond(KeepVisit(values, name, True, 0), end)


def _beyond(keeping: KeepVisit, end: int) -> PackedMask:
    """What lies beyond a boundary that is known."""
    search([KnownBoundary(iter([Window(end, end)]), Boundary(end))], keeping)
    return keeping.mask


class UnitThresholds(NamedTuple):
    """What was found of units of tensors, at several ranks."""

    bits: Sequence[Sequence[int | Tensor]]
    """Of each unit, at each rank: the magnitude bits of the threshold."""
    masks: Sequence[Sequence[Sequence[PackedMask]]]
    """Of each unit, of each tensor: a mask at each rank, of what reaches the threshold."""


def rank_units(
    backend: Backend,
    units: Units,
    counts: Sequence[Sequence[Counts]],
    ranks: Sequence[Sequence[int]],
    kept: Sequence[Sequence[PackedMask]] | None = None,
) -> UnitThresholds:
    """The thresholds of units, and masks of what reaches them: ties stay (GMT, Eq. 3).

    Args:
        backend: where the tensors are.
        units: tensors that are ranked together, without NaN (on a device, masks of units with one
            are all false).
        counts: what the backend counted of them.
        ranks: of each unit's thresholds, 0-based and ascending; as many for all.
        kept: of each unit and tensor a mask, if all that is below the threshold at a single rank is
            to become zero, in place: all else is made true in it.
    """
    visit = backend.visit(units, counts, ranks, kept)
    return UnitThresholds(visit.finish(search(visit.spec(), visit)), visit.masks)
