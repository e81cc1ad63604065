"""The papers' numbers, as data."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest

from deltalens.errors import DeltaLensError
from deltalens.io.papers import (
    LABELS,
    LOST,
    as_deviation,
    as_number,
    paper_table,
    paper_tables,
)


@pytest.mark.parametrize("name", paper_tables())
def test_every_table_has_its_source_and_numbers_only(name: str) -> None:
    table = paper_table(name)
    assert "arXiv" in table.source
    assert "Table" in table.source
    assert table.measures
    assert list(table.cells.columns)[-1] == "note"
    labels = [label for label in LABELS if label in table.cells.columns]
    assert not table.cells.duplicated(labels).any()
    cells = [str(cell) for measure in table.measures for cell in table.cells[measure]]
    if table.holds == "numbers":
        numbers = [as_number(cell) for cell in cells]
        assert any(map(math.isfinite, numbers)) or {*cells} == {LOST}


def test_all_of_gmts_tables_are_there() -> None:
    assert {f"gmt_tab{number}" for number in range(1, 5)} <= {*paper_tables()}


@pytest.mark.parametrize(
    ("cell", "number"),
    [("69.5", 69.5), ("62.2(-1.8)", 62.2), ("-1.5", -1.5), ("83.56±.07", 83.56)],
)
def test_a_printed_cell_is_read(cell: str, number: float) -> None:
    assert as_number(cell) == number


@pytest.mark.parametrize(
    ("cell", "deviation"),
    [("83.56±.07", 0.07), ("45.04±3.39", 3.39), ("31±2", 2.0), ("62.2(-1.8)", math.nan)],
)
def test_a_printed_deviation_is_read_and_no_difference_taken_for_one(
    cell: str, deviation: float
) -> None:
    assert as_deviation(cell) == pytest.approx(deviation, nan_ok=True)


def test_a_dash_is_no_number_and_anything_else_an_error() -> None:
    for nothing in ("-", "", LOST):
        assert math.isnan(as_number(nothing))
        assert math.isnan(as_deviation(nothing))
    for cell in ("69,5", "12.0.1", "n/a", "69.5(1.2)", "69.5±", "69.5±-1", "69.5±1.", "±.07"):
        with pytest.raises(DeltaLensError, match="not a cell"):
            as_number(cell)


def test_a_table_that_is_not_there() -> None:
    with pytest.raises(DeltaLensError, match="gmt_tab1"):
        paper_table("gmt_tab9")


@pytest.mark.parametrize(("name", "known"), [("gmt_tab1", 0), ("gmt_tab2", 2)])
def test_printed_averages_are_those_of_the_printed_scores(name: str, known: int) -> None:
    """Up to one rounding of the average; the exceptions carry a note."""
    table = paper_table(name)
    scores = table.measures[: table.measures.index("Average")]
    apart = 0
    for _, row in table.cells[table.cells["Average"] != ""].iterrows():
        found = sum(as_number(str(row[score])) for score in scores) / len(scores)
        if abs(found - as_number(str(row["Average"]))) > 0.0501:
            apart += 1
            assert "printed scores average" in str(row["note"])
    assert apart == known


@pytest.mark.parametrize("name", ["gmt_tab1", "gmt_tab2"])
def test_printed_differences_are_those_to_sft(name: str) -> None:
    table = paper_table(name)
    groups = table.cells.groupby([c for c in ("model", "domain") if c in table.cells.columns])
    differences = 0
    for (_, rows), measure in itertools.product(groups, table.measures):
        cells: pd.Series[str] = rows.set_index("method")[measure]
        if "(" in cells["GMT"]:
            printed = float(cells["GMT"].partition("(")[2].rstrip(")"))
            assert printed == pytest.approx(as_number(cells["GMT"]) - as_number(cells["SFT"]))
            differences += 1
    assert differences == 14
