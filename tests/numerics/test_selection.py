"""Selection is the oracle's: a stable sort of the full keys, the first k; and nothing else enters.

The chunk and part sizes, and how many tied entries are gathered before they are narrowed by hash,
are made small here so that a few entries cross every one of them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from deltalens.errors import DeltaLensError
from deltalens.numerics.edit import revert_to_base
from deltalens.numerics.hashing import hashed_range, index_hash, name_key
from deltalens.numerics.rates import exact_rate, exact_rates, parse_rates, show_rate
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import (
    EVERYTHING,
    NOTHING,
    Backend,
    Boundary,
    Chunk,
    Counts,
    Entries,
    OnCpu,
    OnDevice,
    Sample,
    Selection,
    Source,
    count,
    draw,
    drop_count,
    find_boundaries,
    find_boundary,
    find_random_boundaries,
    keep_highest,
    prefix,
    prefix_size,
    rank_units,
    sample_stride,
    streamed,
    windows,
)
from deltalens.numerics.workers import Mapper, serial_map, workers
from tests.support.cuts import Cut, cut, resized, torch_threads
from tests.support.oracles import order as oracle
from tests.support.oracles.order import FORMATS, STRATEGIES, Entry, Strategy
from tests.support.oracles.pairs import KINDS, as_bits, make, same_bits, tensors
from tests.support.profile import repeatable
from tests.support.sources import parts_of

pytestmark = [pytest.mark.property, pytest.mark.oracle]

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


# --- thresholds: the magnitude at a rank, without the order among ties ----------------------------

BACKENDS = [OnCpu(serial_map, Scratch()), OnDevice(None)]


def thresholds(backend: Backend, unit: Mapping[str, Tensor], ranks: Sequence[int]) -> list[int]:
    """The magnitude bits at these ranks of the entries of a unit."""
    units = [[Entries(name, tensor) for name, tensor in unit.items()]]
    (found,) = rank_units(backend, units, backend.count(units), [ranks]).bits
    return [int(bits) for bits in found]


def threshold_of(values: Tensor, rank: int) -> int:
    """That of one rank of a tensor, from a sample."""
    boundary = keep_highest(values, rank + 1, 0).boundary
    return boundary.below - (boundary.tie is None)


@dtypes
@repeatable(15)
@given(data=st.data(), sizes=cuts, sample=st.integers(1, 30), sigmas=st.sampled_from([0.1, 5.0]))
def test_thresholds_are_those_of_a_sort(
    dtype: torch.dtype, data: st.DataObject, sizes: Cut, sample: int, sigmas: float
) -> None:
    unit = data.draw(tensors(dtype))
    ranked = sorted(size for tensor in unit.values() for size in oracle.magnitudes(tensor))
    if not ranked:
        return
    ranks = data.draw(st.lists(st.integers(0, len(ranked) - 1), min_size=1, max_size=5))
    with cut(sizes), resized(tensor_sample=sample, sample_sigmas=sigmas):
        for backend in BACKENDS:
            assert thresholds(backend, unit, ranks) == [ranked[rank] for rank in ranks]
        whole = torch.cat(list(unit.values()))
        for rank in ranks:
            assert threshold_of(whole, rank) == ranked[rank]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["normal", "sparse", "grid", "near", "equal"])
def test_thresholds_of_a_large_tensor(dtype: torch.dtype, kind: str) -> None:
    values = make(kind, 300_000, dtype, 0)
    bits = np.sort((as_bits(values) & torch.iinfo(as_bits(values).dtype).max).numpy())
    ranks = [0, 1, 3000, 150_000, 299_998, 299_999]
    for rank in ranks:
        assert threshold_of(values, rank) == bits[rank]
    for backend in BACKENDS:
        assert thresholds(backend, {"w": values}, ranks) == [bits[rank] for rank in ranks]


def test_ranks_outside_the_tensor_are_refused() -> None:
    for rank in (-1, 3):
        with pytest.raises(IndexError):
            keep_highest(torch.ones(3), rank if rank < 0 else rank + 1, 0)
        with pytest.raises(IndexError):
            thresholds(BACKENDS[0], {"w": torch.ones(3)}, [rank])


# --- the hash -------------------------------------------------------------------------------------

SEEDED = [(0, "a"), (1, "a"), (0, "b"), (-3, "model.layers.0.mlp.up_proj.weight"), (2**70, "é\n")]


@pytest.mark.parametrize(("seed", "name"), SEEDED)
def test_the_hash_is_the_oracles(seed: int, name: str) -> None:
    assert name_key(seed, name) == oracle.signed(oracle.name_key(seed, name))
    starts = (0, 1 << 15, (1 << 31) - 300, 1 << 40, (1 << 63) - 600)
    indices = torch.cat([torch.arange(start, start + 599) for start in starts])
    wanted = [oracle.h64(seed, name, int(index)) for index in indices]
    assert index_hash(indices.clone(), name_key(seed, name)).tolist() == wanted
    with cut(Cut(hashed=100)):
        assert index_hash(indices.clone(), name_key(seed, name)).tolist() == wanted
    assert oracle.hashes(seed, name, 599).tolist() == wanted[:599]


@pytest.mark.parametrize(("seed", "name"), SEEDED)
def test_the_hash_is_a_bijection(seed: int, name: str) -> None:
    key = oracle.name_key(seed, name)
    hashed = index_hash(torch.arange(1 << 16), name_key(seed, name))
    assert hashed.unique().numel() == 1 << 16
    for index in range(0, 1 << 16, 97):
        assert oracle.unmix(key, int(hashed[index]) % (1 << 64)) == index


def test_the_hash_is_in_place_and_takes_nothing() -> None:
    indices = torch.arange(70_000)
    assert index_hash(indices, 5).data_ptr() == indices.data_ptr()
    assert index_hash(torch.arange(0), 5).numel() == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["w", "model.layers.3.self_attn.q_proj.weight", "lm_head.weight"])
def test_no_row_or_column_is_favored(strategy: Strategy, name: str) -> None:
    """64 x 1024 equal entries: the share of each row and column is near the rate.

    A sum of n squared standard normals is n on average, with deviation sqrt(2 n): seven deviations
    are far beyond chance and far below what any pattern in the rows would give.
    """
    rows, columns = 64, 1024
    unit = {name: torch.full((rows * columns,), 0.5, dtype=torch.bfloat16)}
    for seed, rate in ((0, 0.3), (1, 0.5), (2, 0.9)):
        chosen = selections(unit, strategy, [str(rate)], seed)[0]
        mask = chosen.mask(name, 0, unit[name]).view(rows, columns).double()
        assert int(mask.sum()) == round(rate * rows * columns)
        for axis, length in ((1, columns), (0, rows)):
            counts = mask.sum(axis)
            squares = (counts - rate * length).square() / (length * rate * (1 - rate))
            assert abs(float(squares.sum()) - len(counts)) < 7 * math.sqrt(2 * len(counts))
        # Neighbors are independent: their agreement is what chance gives.
        agree = float((mask[:, 1:] == mask[:, :-1]).double().mean())
        chance = rate**2 + (1 - rate) ** 2
        assert abs(agree - chance) < 7 * math.sqrt(chance * (1 - chance) / mask.numel())


def test_no_tensor_is_favored() -> None:
    unit = {f"layer.{at}.weight": torch.full((4000,), -1.0) for at in range(20)}
    for strategy in STRATEGIES:
        chosen = selections(unit, strategy, ["0.4"])[0]
        counts = [int(chosen.mask(name, 0, tensor).sum()) for name, tensor in unit.items()]
        assert sum(counts) == 32_000
        squares = sum((count - 1600) ** 2 / (4000 * 0.4 * 0.6) for count in counts)
        assert abs(squares - 20) < 7 * math.sqrt(40)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_names_and_seeds_give_other_orders(strategy: Strategy) -> None:
    values = torch.ones(2000)

    def took(name: str, seed: int) -> set[int]:
        chosen = selections({name: values}, strategy, ["0.5"], seed)[0]
        return {index for _, index in entries(chosen, {name: values})}

    drawn = [took(name, seed) for name in ("a", "b", "a.weight") for seed in (0, 1, 10)]
    for at, one in enumerate(drawn):
        for other in drawn[:at]:
            # 1000 of 2000 twice: 500 in common by chance, with deviation 11.
            assert 400 < len(one & other) < 600
    assert took("a", 0) == took("a", 0)


# --- the histogram --------------------------------------------------------------------------------


@dtypes
@repeatable(15)
@given(data=st.data(), sizes=cuts)
def test_a_histogram_counts_and_adds(dtype: torch.dtype, data: st.DataObject, sizes: Cut) -> None:
    unit = data.draw(tensors(dtype))
    whole = torch.cat(list(unit.values()))
    shift = FORMATS[dtype].bits - 16
    wanted: dict[int, int] = {}
    for size in oracle.magnitudes(whole):
        wanted[size >> shift] = wanted.get(size >> shift, 0) + 1
    with cut(sizes):
        at_once, bit_by_bit = Counts.empty(dtype), Counts.empty(dtype)
        at_once.update(whole)
        for tensor in unit.values():
            one = Counts.empty(dtype)
            one.update(tensor[: len(tensor) // 2])
            one.update(tensor[len(tensor) // 2 :])
            bit_by_bit.merge(one)
        from_source = count(parts_of(unit))
    histograms = [at_once, bit_by_bit] + ([from_source] if from_source is not None else [])
    assert len(histograms) == 3 or whole.numel() == 0
    for made in histograms:
        places = made.counts.nonzero().squeeze(1).tolist()
        assert {place: int(made.counts[place]) for place in places} == wanted
        assert made.counts.dtype == torch.int64
        assert made.total == whole.numel()
        assert made.zeros == sum(size == 0 for size in oracle.magnitudes(whole))
        assert made.nonfinite == 0


@dtypes
def test_a_histogram_tells_what_is_not_finite(dtype: torch.dtype) -> None:
    made = Counts.empty(dtype)
    largest = torch.finfo(dtype).max
    made.update(torch.tensor([math.nan, 1.0, -math.inf, 0.0, math.inf, -largest], dtype=dtype))
    assert (made.total, made.nonfinite, made.zeros) == (6, 3, 1)
    assert made.quantile([0.0, 0.5])[0] == 0.0
    assert made.quantile([1.0])[0] == pytest.approx(largest, rel=1 / 32)


@dtypes
@repeatable(25)
@given(data=st.data(), fractions=st.lists(st.floats(0, 1), min_size=1))
@example(data=None, fractions=[0.5])
def test_quantiles_are_numpys(
    dtype: torch.dtype, data: st.DataObject | None, fractions: list[float]
) -> None:
    """By nearest rank; exact where a bin is one number, else the lower edge of the right bin."""
    kinds = st.sampled_from([kind for kind in KINDS if kind != "subnormal"])
    if data is None:
        values = torch.tensor([3.0], dtype=dtype)
    else:
        values = make(data.draw(kinds), data.draw(st.integers(1, 70)), dtype, 3)
    made = Counts.empty(dtype)
    made.update(values)
    sizes = np.sort(values.double().abs().numpy())
    form = FORMATS[dtype]
    tiny = float(oracle.number(1 << form.fraction, form))  # below it bins are of one width
    parts = 1 << (15 - form.exponent)  # bins of an octave: 128 in fp32, 16 in fp64
    for fraction, found in zip(fractions, made.quantile(fractions), strict=True):
        true = float(np.quantile(sizes, fraction, method="nearest"))
        rank = fraction * (len(sizes) - 1)
        if abs(rank % 1 - 0.5) < 1e-9:  # halfway: either neighbor is nearest
            true = min(sizes[[math.floor(rank), math.ceil(rank)]], key=lambda s: abs(s - found))
        if form.bits == 16:
            assert found == true
        elif true < tiny:
            assert found <= true <= found + tiny / parts
        else:
            assert found <= true <= found * (1 + 1 / parts)


def test_an_empty_histogram() -> None:
    made = Counts.empty(torch.float32)
    made.update(torch.empty(0))
    assert (made.total, made.zeros, made.nonfinite) == (0, 0, 0)
    assert all(math.isnan(value) for value in made.quantile([0.0, 0.5, 1.0]))
    assert count(parts_of({"w": torch.empty(0)})) is None
    with pytest.raises(IndexError):
        made.prefixes_at([0])


def test_what_is_recorded_of_counts_follows_what_is_added() -> None:
    """It is made once, and anew when there is more."""
    made, more = Counts.empty(torch.float32), Counts.empty(torch.float32)
    for add in (lambda: made.update(torch.full((5,), 3.0)), lambda: made.merge(more)):
        more.update(torch.full((7,), 0.5))
        add()
        found = made.stats([0.0, 1.0])
        assert made.stats([0.0, 1.0]) is found
        assert int(found.octaves.sum()) == made.total
    assert found.quantiles == [0.5, 3.0]
    assert made.stats([0.5]).quantiles == [0.5]


def test_histograms_of_different_dtypes_do_not_mix() -> None:
    made = Counts.empty(torch.float32)
    with pytest.raises(TypeError):
        made.update(torch.ones(3, dtype=torch.float16))
    with pytest.raises(TypeError):
        made.merge(Counts.empty(torch.float16))
    with pytest.raises(TypeError):
        Counts.empty(torch.int32)


@dtypes
def test_edges_are_the_smallest_number_of_each_bin(dtype: torch.dtype) -> None:
    form, made = FORMATS[dtype], Counts.empty(dtype)
    shift, edges = form.bits - 16, made.edges()
    assert len(edges) == form.infinity >> shift
    for place in (0, 1, 2, 100, 15_000, len(edges) - 1):
        assert float(edges[place]) == float(oracle.number(place << shift, form))


# --- putting back ---------------------------------------------------------------------------------


@dtypes
@repeatable(25)
@given(kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)), n=st.integers(0, 50))
def test_put_back_takes_every_entry_from_one_or_the_other(
    dtype: torch.dtype, kinds: tuple[str, str], n: int
) -> None:
    ft, base = make(kinds[0], n, dtype, 1), make(kinds[1], n, dtype, 2)
    mask = torch.from_numpy(np.random.default_rng(3).random(n) < 0.5)
    wanted = torch.where(mask, as_bits(base), as_bits(ft)).view(dtype)
    assert same_bits(revert_to_base(ft, base, mask), wanted)
    out = ft.clone()
    assert revert_to_base(out, base, mask, out=out) is out
    assert same_bits(out, wanted)


# --- rates ----------------------------------------------------------------------------------------


def test_a_range_of_rates_is_exact() -> None:
    assert parse_rates("0:1:0.1") == [Fraction(n, 10) for n in range(11)]
    assert parse_rates("0.1:0.3:0.1") == [Fraction(1, 10), Fraction(1, 5), Fraction(3, 10)]
    assert parse_rates("0:1:0.3") == [Fraction(3 * n, 10) for n in range(4)]
    assert parse_rates("0.7:0.7:0.1") == [Fraction(7, 10)]
    assert parse_rates("0.9, 0.1,0.10,0:0.2:0.1") == [Fraction(n, 10) for n in (0, 1, 2, 9)]
    assert len(parse_rates("0:1:0.0001")) == 10_001
    assert exact_rates([0.3, "0.3", Decimal("0.30"), Fraction(3, 10)]) == [Fraction(3, 10)]


@repeatable(200)
@given(digits=st.integers(0, 10**9), n=st.integers(0, 10**12))
def test_rates_are_the_decimals_that_were_typed(digits: int, n: int) -> None:
    typed = f"{digits / 10**9:.9f}"
    exact = exact_rate(typed)
    assert exact == Fraction(digits, 10**9)
    assert exact_rate(float(typed)) == exact
    assert exact_rate(Decimal(typed)) == exact
    assert exact_rate(show_rate(exact)) == exact
    assert drop_count(exact, n) == oracle.count_for(typed, n)


@pytest.mark.parametrize(
    ("rate", "n", "k"),
    [
        ("0.5", 1, 0),  # half to even
        ("0.5", 3, 2),
        ("0.5", 5, 2),
        ("0.15", 10, 2),  # 1.5; in binary 0.15 is a little less
        ("0.35", 10, 4),
        ("0.45", 10, 4),  # 4.5; in binary 0.45 is a little more
        ("0.7", 10, 7),
        ("0.07", 100, 7),
        ("0.29", 100, 29),
        ("0.000001", 500_000, 0),
        ("0.7", 10**18 + 1, 7 * 10**17 + 1),
    ],
)
def test_counts_are_of_the_exact_product(rate: str, n: int, k: int) -> None:
    assert drop_count(exact_rate(rate), n) == k == oracle.count_for(rate, n)


def test_a_sum_of_floats_is_taken_as_it_prints() -> None:
    assert exact_rate(0.1 + 0.2) == Fraction("0.30000000000000004")
    assert exact_rate(0.3) == Fraction(3, 10)
    assert exact_rate(np.float64(0.7)) == Fraction(7, 10)


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "x", "0.1.2", "0,", ",", "0.1;0.2", "half", "1/2", "50%", "0x1", "--"],
        *["nan", "inf", "-inf", "-0.1", "1.0000000001", "2", "1e3", "0:1", "0:1:0.1:2", "::"],
        *["0:1:0", "1:0:0.1", "0:2:0.1", "0:1:-0.1", "0:1:x", "0:1:1e-9"],
    ],
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(DeltaLensError):
        parse_rates(text)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf, True, None, Fraction(3, 2), -1])
def test_numbers_that_are_no_rate_are_refused(rate: float) -> None:
    with pytest.raises(DeltaLensError):
        exact_rate(rate)


@repeatable(200)
@given(text=st.text(alphabet="0123456789.,:-+eE_ na", max_size=12))
def test_any_text_is_rates_or_an_error(text: str) -> None:
    try:
        found = parse_rates(text)
    except DeltaLensError:
        return
    assert found == sorted(set(found))
    assert all(0 <= rate <= 1 for rate in found)
