"""Rates are the decimals that were typed, and counts are of the exact product."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalens.errors import DeltaLensError
from deltalens.numerics.rates import exact_rate, exact_rates, parse_rates, show_rate
from deltalens.numerics.selection import (
    drop_count,
)
from tests.support.oracles import order as oracle
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]


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
