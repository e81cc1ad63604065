"""Selection is the oracle's: a stable sort of the full keys, the first k; and nothing else enters.

The chunk and part sizes, and how many tied entries are gathered before they are narrowed by hash,
are made small here so that a few entries cross every one of them.
"""

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltalens.numerics.selection import (
    Chunk,
    Selection,
    count,
    find_boundaries,
    find_boundary,
    find_random_boundaries,
    prefix,
    streamed,
    windows,
)
from deltalens.numerics.workers import Mapper, serial_map, workers
from tests.support.cuts import Cut, cut
from tests.support.oracles import order as oracle
from tests.support.oracles.order import STRATEGIES, Strategy
from tests.support.oracles.pairs import KINDS, as_bits, make, tensors
from tests.support.profile import repeatable
from tests.support.selecting import (
    DTYPES,
    by_bracket,
    check,
    cuts,
    dtypes,
    entries,
    expected,
    members_of,
    rates,
    sample_of,
    selections,
    threads,
)
from tests.support.sources import parts_of

pytestmark = [pytest.mark.property, pytest.mark.oracle]

# --- the order, against the oracle ----------------------------------------------------------------


@dtypes
@repeatable(16)
@given(data=st.data(), typed=rates, seed=st.integers(0, 3), changed=st.booleans(), sizes=cuts)
def test_selection_is_the_oracles(
    dtype: torch.dtype,
    data: st.DataObject,
    typed: list[str],
    seed: int,
    changed: bool,
    sizes: Cut,
) -> None:
    check(data.draw(tensors(dtype, count=3)), typed, seed, changed, sizes)


@dtypes
@repeatable(16)
@given(data=st.data(), typed=rates, seed=st.integers(0, 3), changed=st.booleans(), sizes=cuts)
def test_a_bracket_finds_the_same(
    dtype: torch.dtype,
    data: st.DataObject,
    typed: list[str],
    seed: int,
    changed: bool,
    sizes: Cut,
) -> None:
    check(data.draw(tensors(dtype, count=3)), typed, seed, changed, sizes, bracketed=True)


@pytest.mark.parametrize("seed", range(12))
def test_a_bracket_that_ends_among_ties(seed: int) -> None:
    """At every rank, from a poor sample: at some, the bracket ends with the key looked for."""
    unit = {"w": make("equal", 60, torch.float32, 0)}
    ranked = oracle.ordered({"w": oracle.magnitudes(unit["w"])}, "trivial", seed)
    with cut(Cut(sample=12, sigmas=0.01)):
        for size, boundary in enumerate(by_bracket(unit, range(61), seed, serial_map)):
            assert entries(Selection("trivial", boundary, seed), unit) == set(ranked[:size])


@pytest.mark.slow
@dtypes
@repeatable(60)
@given(data=st.data(), typed=rates, seed=st.integers(), changed=st.booleans(), sizes=cuts)
def test_selection_is_the_oracles_for_many_more_units(
    dtype: torch.dtype,
    data: st.DataObject,
    typed: list[str],
    seed: int,
    changed: bool,
    sizes: Cut,
) -> None:
    check(data.draw(tensors(dtype, most=200, count=5)), typed, seed, changed, sizes)


@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_tensor(dtype: torch.dtype, kind: str) -> None:
    unit = {name: make(kind, 120, dtype, at) for at, name in enumerate(("b", "a"))}
    for sigmas in (0.01, 8.0):
        sizes = Cut(chunk=32, part=64, sigmas=sigmas, hashed=10, question=40)
        for bracketed in (False, True):
            check(unit, ["0.01", "0.5", "0.77"], 1, False, sizes, bracketed=bracketed)


@dtypes
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (0, 1), (2,), (1, 1, 1)])
def test_the_smallest_units(dtype: torch.dtype, strategy: Strategy, sizes: tuple[int, ...]) -> None:
    unit = {f"t{at}": make("equal", n, dtype, at) for at, n in enumerate(sizes)}
    typed = ["0", "0.3", "0.5", "0.7", "1"]
    for rate, chosen in zip(typed, selections(unit, strategy, typed), strict=True):
        assert entries(chosen, unit) == expected(unit, strategy, rate)


@dtypes
def test_infinities_are_ranked_last(dtype: torch.dtype) -> None:
    unit = {"w": torch.tensor([1.0, math.inf, -0.0, -math.inf, 2.0, 1e-7], dtype=dtype)}
    for strategy in STRATEGIES:
        typed = [str(Decimal(k) / 6) for k in range(7)]
        for rate, chosen in zip(typed, selections(unit, strategy, typed), strict=True):
            assert entries(chosen, unit) == expected(unit, strategy, rate)
    assert entries(selections(unit, "salient", ["0.34"])[0], unit) == {("w", 1), ("w", 3)}


def test_plus_and_minus_zero_tie() -> None:
    unit = {"w": torch.tensor([0.0, -0.0] * 40)}
    took = entries(selections(unit, "trivial", ["0.5"])[0], unit)
    assert took == expected({"w": torch.zeros(80)}, "trivial", "0.5")
    assert len({index % 2 for _, index in took}) == 2


@dtypes
@repeatable(10)
@given(data=st.data(), typed=rates, sizes=cuts)
def test_where_hashes_collide_the_name_decides(
    dtype: torch.dtype, data: st.DataObject, typed: list[str], sizes: Cut
) -> None:
    """Hashes of two tensors never meet in practice: here all tensors hash alike."""
    unit = data.draw(tensors(dtype, most=30))
    with pytest.MonkeyPatch.context() as patch, cut(sizes):
        for module in (prefix, streamed, windows):
            patch.setattr(module, "name_key", lambda seed, name: 77)
        for strategy in STRATEGIES:
            ranked = oracle.ordered(
                {name: oracle.magnitudes(tensor) for name, tensor in unit.items()},
                strategy,
                hash_of=lambda seed, name, index: oracle.signed(oracle.mix(77, index)),
            )
            for bracketed in (False, True):
                found = selections(unit, strategy, typed, step=sizes.chunk, bracketed=bracketed)
                for rate, chosen in zip(typed, found, strict=True):
                    k = oracle.count_for(rate, len(ranked))
                    assert entries(chosen, unit) == set(ranked[:k])


def large_unit(dtype: torch.dtype, n: int) -> dict[str, Tensor]:
    kinds = ("normal", "grid", "sparse")
    draws = zip(kinds, (n, n // 3, n // 7), strict=True)
    return {kind: make(kind, size, dtype, at) for at, (kind, size) in enumerate(draws)}


def check_large(unit: Mapping[str, Tensor], typed: list[str], mapper: Mapper) -> None:
    sizes = {
        name: (as_bits(tensor) & torch.iinfo(as_bits(tensor).dtype).max).numpy()
        for name, tensor in unit.items()
    }
    large = oracle.LargeUnit(sizes, 5)
    for strategy in STRATEGIES:
        found = selections(unit, strategy, typed, 5, mapper=mapper)
        again = selections(unit, strategy, typed, 5, mapper=mapper, bracketed=True)
        for rate, chosen in zip(typed + typed, found + again, strict=True):
            wanted = large.select(strategy, rate)
            for name, tensor in unit.items():
                middle = tensor.numel() // 2 + 1
                pieces = [
                    chosen.mask(name, 0, tensor[:middle]),
                    chosen.mask(name, middle, tensor[middle:]),
                ]
                assert np.array_equal(torch.cat(pieces).numpy(), wanted[name]), (strategy, rate)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_units_of_several_chunks_as_they_are_cut_in_earnest(dtype: torch.dtype) -> None:
    with threads(3) as mapper:
        check_large(large_unit(dtype, 300_000), ["0.001", "0.3", "0.9"], mapper)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 2])
def test_units_of_several_parts_and_more_ties_than_are_gathered(
    dtype: torch.dtype, count: int
) -> None:
    with threads(count) as mapper:
        check_large(large_unit(dtype, 4_300_000), ["0.00001", "0.5"], mapper)
        equal = {"w": make("equal", 1_500_000, dtype, 0), "v": make("equal", 11, dtype, 0)}
        check_large(equal, ["0.1", "0.5000001"], mapper)


# --- nested, and independent of how the work is done ----------------------------------------------


@dtypes
@pytest.mark.parametrize("changed_only", [False, True])
@repeatable(4)
@given(data=st.data(), sizes=cuts)
def test_growing_rates_are_nested(
    dtype: torch.dtype, changed_only: bool, data: st.DataObject, sizes: Cut
) -> None:
    unit = data.draw(tensors(dtype))
    typed = [str(Decimal(step) / 8) for step in range(9)]
    with cut(sizes):
        for strategy in STRATEGIES:
            one_by_one = [
                entries(selections(unit, strategy, [rate], changed_only=changed_only)[0], unit)
                for rate in typed
            ]
            at_once = selections(unit, strategy, typed, changed_only=changed_only)
            assert one_by_one == [entries(chosen, unit) for chosen in at_once]
            for smaller, larger in pairwise(one_by_one):
                assert smaller <= larger


@repeatable(25)
@given(
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
    sizes=cuts,
    shuffle=st.randoms(use_true_random=False),
    changed=st.booleans(),
)
def test_cuts_and_visiting_order_change_nothing(
    dtype: torch.dtype, data: st.DataObject, sizes: Cut, shuffle: object, changed: bool
) -> None:
    unit = data.draw(tensors(dtype))
    typed = ["0.2", "0.5", "0.85"]

    def shuffled(things: list) -> list:
        return shuffle.sample(things, len(things))  # type: ignore[attr-defined]

    mixed = dict(shuffled(list(unit.items())))
    for strategy in STRATEGIES:
        plain = selections(unit, strategy, typed, changed_only=changed)
        with cut(sizes):
            other = selections(
                mixed, strategy, typed, changed_only=changed, arrange=shuffled, step=sizes.chunk
            )
            for one, two in zip(plain, other, strict=True):
                assert one.boundary == two.boundary
                assert entries(two, mixed, sizes.question) == entries(one, unit)


@dtypes
@repeatable(6)
@given(data=st.data(), typed=rates, changed=st.booleans(), sizes=cuts)
def test_threads_change_nothing(
    dtype: torch.dtype, data: st.DataObject, typed: list[str], changed: bool, sizes: Cut
) -> None:
    unit = data.draw(tensors(dtype))
    with threads(3) as mapper:
        assert mapper is not serial_map
        check(unit, typed, 0, changed, sizes, mapper)


def test_workers_keep_the_order_and_give_torchs_threads_back() -> None:
    before = torch.get_num_threads()
    with threads(4) as mapper:
        assert torch.get_num_threads() == 1
        assert list(mapper(lambda n: n * n, range(100))) == [n * n for n in range(100)]
        with pytest.raises(ZeroDivisionError):
            list(mapper(lambda n: 1 // n, [1, 0, 1]))
        assert list(mapper(lambda n: n, [])) == []
    assert torch.get_num_threads() == before
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), workers():
            raise KeyError
        assert torch.get_num_threads() == 2
        with workers("meta") as mapper:
            assert mapper is serial_map
    finally:
        torch.set_num_threads(before)


def test_a_histogram_made_before_gives_the_same_boundaries() -> None:
    unit = {name: make("sparse", 900, torch.float32, at) for at, name in enumerate("ab")}
    source = parts_of(unit)
    sizes = [0, 1, 17, 900, 1799, 1800]
    made = count(source)
    assert find_boundaries(source, sizes, 3, made) == find_boundaries(source, sizes, 3)


@pytest.mark.parametrize("size", [-1, 11])
def test_prefixes_outside_the_unit_are_refused(size: int) -> None:
    unit = {"w": torch.ones(10)}
    with pytest.raises(IndexError):
        find_boundaries(parts_of(unit), [3, size])
    with pytest.raises(IndexError):
        find_random_boundaries(members_of(unit, 4, False), 10, [3, size])
    with pytest.raises(IndexError):
        find_boundary(parts_of(unit), size, 10, sample_of(unit))


def test_parts_may_be_empty() -> None:
    """A source's part that has no chunk, beside one that has all."""
    unit = {"w": make("near", 50, torch.float32, 0)}
    full = parts_of(unit)

    def nothing() -> Iterator[Chunk]:
        return iter(())

    sizes = [1, 20, 49]
    for source in ([nothing, *full], [*full, nothing], [nothing, *full, nothing]):
        assert find_boundaries(source, sizes) == find_boundaries(full, sizes)


def test_parts_of_takes_tensors_of_any_layout() -> None:
    tensor = make("grid", 60, torch.float32, 0).view(6, 10).t()
    flat = {"w": tensor.contiguous().view(-1)}
    for size in (7, 30, 59):
        one = find_boundaries(parts_of({"w": tensor.requires_grad_()}), [size])
        assert one == find_boundaries(parts_of(flat), [size])
