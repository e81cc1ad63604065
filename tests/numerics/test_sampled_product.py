"""Entries of a product, computed one by one or taken from the dense product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalens.numerics.sampled import Places, TurnedColumns, sampled_product, take_columns

pytestmark = pytest.mark.property


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tokens=st.sampled_from([1, 7, 2048, 2500]),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 10),
)
def test_a_sampled_product_has_the_entries_of_the_dense_one(
    rows: int, columns: int, tokens: int, density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(tokens, rows, generator=generator, dtype=torch.float64)
    right = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    flat = (torch.rand(rows * columns, generator=generator) < density).nonzero().squeeze(1)
    places, dense = Places.of((rows, columns), flat), (left.t() @ right).view(-1)[flat]
    assert torch.equal(places.flat, flat)
    found = sampled_product(left, right, places)
    torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-10)
    single = sampled_product(left.float(), right.float(), places)
    assert single.dtype == torch.float32
    scale = left.abs().t().max() * right.abs().max() * tokens
    assert float((single - dense).abs().max() if len(flat) else 0.0) <= 1e-6 * float(scale)


@pytest.mark.parametrize("density", [0.01, 0.5])
def test_entries_of_many_rows_are_found(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(5, n, generator=generator).double() for n in (2500, 3))
    flat = (torch.rand(7500, generator=generator) < density).nonzero().squeeze(1)
    flat = flat[(flat < 3000) | (flat > 6500)]  # the rows in the middle have none
    found = sampled_product(left, right, Places.of((2500, 3), flat))
    torch.testing.assert_close(found, (left.t() @ right).reshape(-1)[flat])


def test_half_precision_is_summed_in_fp32() -> None:
    ones = torch.ones(1500, 64, dtype=torch.bfloat16)
    places = Places.of((64, 64), torch.tensor([5, 70]))
    found = sampled_product(ones, ones, places)
    assert found.tolist() == [1500.0, 1500.0]  # bf16 has no 1,500


def test_views_of_any_stride_are_read() -> None:
    left, right = torch.randn(12, 60)[:, ::3].double(), torch.randn(9, 12).double().t()
    flat = torch.tensor([0, 11, 100])
    found = sampled_product(left, right, Places.of((20, 9), flat))
    torch.testing.assert_close(found, (left.t() @ right).reshape(-1)[flat])


def test_a_place_takes_four_bytes_and_a_row_four() -> None:
    flat = torch.arange(0, 64 * 64, 3)
    assert Places.of((64, 64), flat).nbytes == 4 * len(flat) + 4 * 65


def test_rows_and_columns_without_entries_take_nothing() -> None:
    flat = torch.tensor([3, (1 << 32) - 1])
    places = Places.of((1 << 16, 1 << 16), flat)
    assert places.compact == (2, 2)
    assert places.nbytes == 4 * 2 + 4 * 2 + 4 * 2 + 4 * 3
    assert torch.equal(places.flat, flat)


@pytest.mark.parametrize("density", [0.02, 0.9])
def test_columns_that_were_taken_before_give_the_same_product(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(300, 40, generator=generator).double() for _ in "lr")
    chosen = torch.rand(40, 40, generator=generator) < density
    chosen[:, 10:] = False  # few columns
    chosen[15:] = False  # few rows
    flat = chosen.view(-1).nonzero().squeeze(1)
    places = Places.of((40, 40), flat)
    assert places.rows is not None
    assert places.columns is not None
    taken = take_columns(left, places.rows), take_columns(right, places.columns)
    expected = (left.t() @ right).view(-1)[flat]
    for sides in ((left, right), taken, (left, taken[1])):
        torch.testing.assert_close(sampled_product(*sides, places), expected)


def test_nan_and_infinity_stay() -> None:
    left, right = torch.ones(4, 9), torch.ones(4, 9)
    left[0, 0], left[1, 1] = float("nan"), float("inf")
    places = Places.of((9, 9), torch.tensor([0, 10, 20]))
    found = sampled_product(left, right, places)
    assert found.isnan().tolist() == [True, False, False]
    assert found.isinf().tolist() == [False, True, False]


def test_nothing_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    sampled_product(torch.ones(4, 9), torch.ones(4, 9), Places.of((9, 9), torch.tensor([1])))
    assert not recwarn.list


def test_columns_that_are_kept_are_those_of_the_matrix_as_it_is_now() -> None:
    left, right = torch.randn(8, 6).double(), torch.randn(8, 5).double()
    places, kept = Places.of((6, 5), torch.tensor([0, 7, 29])), TurnedColumns()
    for _ in range(2):
        found = sampled_product(left, right, places, (None, kept))
        assert torch.equal(found, sampled_product(left, right, places))
    assert kept.rows(right, torch.float64) is kept.rows(right, torch.float64)
    right.mul_(2)  # in place, where it was
    found = sampled_product(left, right, places, (None, kept))
    assert torch.equal(found, sampled_product(left, right, places))
    kept.clear()
    other = torch.randn(8, 5).double()
    found = sampled_product(left, other, places, (None, kept))
    assert torch.equal(found, sampled_product(left, other, places))
