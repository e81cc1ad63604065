"""Selections of units in memory, made as a study makes them, and what the oracle expects."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from deltalens.numerics.hashing import hashed_range, index_hash
from deltalens.numerics.rates import exact_rate
from deltalens.numerics.selection import (
    EVERYTHING,
    NOTHING,
    Boundary,
    Chunk,
    Sample,
    Selection,
    Source,
    draw,
    drop_count,
    find_boundaries,
    find_boundary,
    find_random_boundaries,
    prefix,
    prefix_size,
    sample_stride,
)
from deltalens.numerics.workers import Mapper, serial_map, workers
from tests.support.cuts import Cut, cut, torch_threads
from tests.support.oracles import order as oracle
from tests.support.oracles.order import STRATEGIES, Entry, Strategy
from tests.support.sources import parts_of

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

decimals = st.integers(0, 1000).map(lambda n: str(Decimal(n) / 1000))
rates = st.lists(
    st.one_of(st.sampled_from(["0", "1", "0.5", "0.1"]), decimals), min_size=1, max_size=4
)


cuts = st.builds(
    Cut,
    chunk=st.integers(3, 13),
    part=st.integers(13, 60),
    sigmas=st.sampled_from([0.001, 0.3, 8.0]),
    hashed=st.integers(1, 7),
    sample=st.integers(1, 40),
    question=st.integers(1, 11),
)


@contextmanager
def threads(count: int) -> Iterator[Mapper]:
    """What `workers` gives where torch has so many threads."""
    with torch_threads(count), workers() as mapper:
        yield mapper


def members_of(unit: Mapping[str, Tensor], step: int, changed_only: bool, seed: int = 0) -> Source:
    """The hashes of a unit's entries in parts, as `find_random_boundaries` takes them."""

    def part(name: str, start: int, stop: int) -> Iterator[Chunk]:
        key = prefix.name_key(seed, name)
        if changed_only:
            changed = (unit[name][start:stop] != 0).nonzero().squeeze(1)
            yield Chunk(name, start, index_hash(changed + start, key))
        else:
            for hashes in hashed_range(start, stop, key, torch.device("cpu")):
                yield Chunk(name, start, hashes)

    return [
        functools.partial(part, name, start, min(start + step, tensor.numel()))
        for name, tensor in unit.items()
        for start in range(0, tensor.numel(), step)
    ]


def sample_of(unit: Mapping[str, Tensor]) -> list[Sample]:
    """What `find_boundary` guesses from."""
    stride = sample_stride(sum(tensor.numel() for tensor in unit.values()))
    return [
        Sample(name, torch.arange(0, tensor.numel(), stride), tensor[::stride].clone())
        for name, tensor in unit.items()
    ]


def drawn(unit: Mapping[str, Tensor], count: int, seed: int, mapper: Mapper) -> Selection:
    """A random drop whose masks are made in one pass, as `drop` makes it."""
    sizes = {name: tensor.numel() for name, tensor in unit.items()}
    if not 0 < count < sum(sizes.values()):
        return Selection("random", EVERYTHING if count else NOTHING, seed)
    boundary, masks = draw(sizes, count, seed, mapper)
    return Selection("random", boundary, seed, drawn=masks)


def by_bracket(
    unit: Mapping[str, Tensor], sizes: Sequence[int], seed: int, mapper: Mapper
) -> list[Boundary]:
    """Each boundary by a pass of its own; where the bracket missed, as the product falls back."""
    source, total = parts_of(unit), sum(tensor.numel() for tensor in unit.values())
    found = []
    for size in sizes:
        one = find_boundary(source, size, total, sample_of(unit), seed, mapper)
        assert one.zeros == sum(int((tensor == 0).sum()) for tensor in unit.values())
        assert one.finite == all(bool(tensor.isfinite().all()) for tensor in unit.values())
        missed = one.boundary is None
        found.append(
            find_boundaries(source, [size], seed, mapper=mapper)[0] if missed else one.boundary
        )
    return found


def selections(
    unit: Mapping[str, Tensor],
    strategy: Strategy,
    typed: Sequence[str],
    seed: int = 0,
    *,
    changed_only: bool = False,
    mapper: Mapper = serial_map,
    arrange: Callable[[list], list] = list,
    step: int = 1 << 18,
    bracketed: bool = False,
) -> list[Selection]:
    """The selection of each rate, all from the same passes, as a study makes them."""
    exact = [exact_rate(rate) for rate in typed]
    total = sum(tensor.numel() for tensor in unit.values())
    unchanged = sum(int((tensor == 0).sum()) for tensor in unit.values()) if changed_only else 0
    if strategy == "random":
        n = total - unchanged
        if bracketed and not changed_only:
            return [drawn(unit, drop_count(rate, n), seed, mapper) for rate in exact]
        parts = arrange(members_of(unit, step, changed_only, seed))
        sizes = [drop_count(rate, n) for rate in exact]
        found = find_random_boundaries(parts, n, sizes, mapper)
    else:
        source = arrange(list(parts_of(unit)))
        sizes = [prefix_size(strategy, rate, total, unchanged) for rate in exact]
        found = (
            by_bracket(unit, sizes, seed, mapper)
            if bracketed
            else find_boundaries(source, sizes, seed, mapper=mapper)
        )
    return [Selection(strategy, boundary, seed, changed_only) for boundary in found]


def entries(chosen: Selection, unit: Mapping[str, Tensor], step: int = 1 << 18) -> set[Entry]:
    """Every entry that a selection takes, asked in steps."""
    found: set[Entry] = set()
    for name, tensor in unit.items():
        for start in range(0, tensor.numel(), step):
            mask = chosen.mask(name, start, tensor[start : start + step])
            found |= {(name, start + int(at)) for at in mask.nonzero()}
    return found


def expected(
    unit: Mapping[str, Tensor],
    strategy: Strategy,
    rate: str,
    seed: int = 0,
    changed_only: bool = False,
) -> set[Entry]:
    sizes = {name: oracle.magnitudes(tensor) for name, tensor in unit.items()}
    return oracle.select(sizes, strategy, rate, seed, changed_only=changed_only)


def check(
    unit: dict[str, Tensor],
    typed: list[str],
    seed: int,
    changed_only: bool,
    sizes: Cut,
    mapper: Mapper = serial_map,
    bracketed: bool = False,
) -> None:
    with cut(sizes):
        for strategy in STRATEGIES:
            found = selections(
                unit,
                strategy,
                typed,
                seed,
                changed_only=changed_only,
                mapper=mapper,
                step=sizes.chunk,
                bracketed=bracketed,
            )
            for rate, chosen in zip(typed, found, strict=True):
                took = entries(chosen, unit, sizes.question)
                assert took == expected(unit, strategy, rate, seed, changed_only), (strategy, rate)
                n = sum(t.numel() for t in unit.values())
                n -= sum(int((t == 0).sum()) for t in unit.values()) if changed_only else 0
                assert len(took) == oracle.count_for(rate, n)
                if n and chosen.empty:
                    assert not took
