"""Histograms of magnitudes count, add, and name every quantile."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from deltalens.numerics.selection import (
    Counts,
    count,
)
from tests.support.cuts import Cut, cut
from tests.support.oracles import order as oracle
from tests.support.oracles.order import FORMATS
from tests.support.oracles.pairs import KINDS, make, tensors
from tests.support.profile import repeatable
from tests.support.selecting import cuts, dtypes
from tests.support.sources import parts_of

pytestmark = [pytest.mark.property, pytest.mark.oracle]


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
