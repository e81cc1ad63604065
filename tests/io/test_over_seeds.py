"""One number for the seeds of a point."""

import math

import pandas as pd
import pytest

from deltalens.io.tables import over_seeds


def of(values: list[float], how: str) -> float:
    frame = pd.DataFrame({"point": "a", "value": values})
    return float(over_seeds(frame.groupby("point")["value"], how)["a"])


def test_values_that_are_all_the_same_do_not_deviate() -> None:
    value = 7.063635224
    assert pd.Series([value] * 3).std() > 0, "chosen so that the mean is rounded"
    assert of([value] * 3, "std") == 0


def test_others_deviate_as_pandas_has_it() -> None:
    assert of([1.0, 2.0, 4.0], "std") == pytest.approx(pd.Series([1.0, 2.0, 4.0]).std())


def test_a_single_value_has_no_deviation() -> None:
    assert math.isnan(of([1.0], "std"))


def test_no_number_among_them_makes_no_number() -> None:
    assert math.isnan(of([1.0, math.nan], "mean"))
    assert math.isnan(of([math.nan, math.nan], "std"))
