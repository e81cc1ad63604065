"""MFT's printed numbers, as data: spot values, and the slips that are known."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from deltalens.io.papers import as_number, paper_table, paper_tables

DOMAINS = {
    "Math": ("GSM8K", "Math"),
    "Coding": ("HumanEval", "HumanEval+"),
    "IF": ("IF-Eval", "Alpaca-Eval"),
}
ROWS = {
    "FFT (Upper Bound)": "[Upper Bound] FFT",
    "Continued FFT": "FFT + Continued FFT",
    "Random Mask w/ Upper Bound": "Random Mask w/ Upper Bound",
    "L1 Mask w/ Upper Bound": "L1 Mask w/ Upper Bound",
    "MFT w/ Upper Bound (Ours)": "[Ours] FFT + Mask",
}


def cell(table: str, column: str, **labels: str) -> str:
    cells = paper_table(table).cells
    for name, value in labels.items():
        cells = cells[cells[name] == value]
    (found,) = cells[column]
    return str(found)


@pytest.mark.parametrize(("number", "rows"), [(1, 15), (2, 15), (3, 8), (5, 16), (6, 16)])
def test_every_cell_of_a_table_is_there(number: int, rows: int) -> None:
    assert f"mft_tab{number}" in paper_tables()
    table = paper_table(f"mft_tab{number}")
    assert "2503.22764" in table.source
    assert f"Table {number}" in table.source
    assert len(table.cells) == rows
    numbers = [as_number(text) for name in table.measures for text in table.cells[name]]
    assert all(map(math.isfinite, numbers))


def test_spot_values() -> None:
    ours = "MFT w/ Upper Bound (Ours)"
    tables = ("mft_tab1", "mft_tab2")
    assert cell(tables[0], "GSM8K", setting="Specific Domain", method=ours) == "47.3(+0.4)"
    assert cell(tables[0], "HumanEval", method="Pre-Trained Model (Lower Bound)") == "25.8"
    assert cell(tables[1], "IF-Eval", setting="Specific Domain", method=ours) == "65.8(+6.0)"
    assert cell(tables[1], "Alpaca-Eval", setting="Multi Domain", method="LoRA") == "11.0"
    globally = "FFT + Global MFT (Ours)"
    assert cell("mft_tab3", "GSM8K", model="LLaMA2-7B", method=globally) == "49.0(+2.1)"
    assert cell("mft_tab3", "GSM8K", model="LLaMA3.1-8B", method=globally) == "74.1(-2.9)"
    assert cell("mft_tab5", "Alpaca-Eval", method="FFT + Continued FFT [Coding]") == "2.7"
    assert cell("mft_tab6", "Math", method="Random Mask w/ Upper Bound [IF]") == "6.9"


@pytest.mark.parametrize(
    ("name", "group", "apart"),
    [
        ("mft_tab1", "setting", {("Specific Domain", "IF-Eval")}),
        ("mft_tab2", "setting", {("Multi Domain", "Math"), ("Multi Domain", "Alpaca-Eval")}),
        ("mft_tab3", "model", set()),
    ],
)
def test_the_second_numbers_are_distances_to_fft(
    name: str, group: str, apart: set[tuple[str, str]]
) -> None:
    """And so no standard deviations; the exceptions carry a note."""
    table = paper_table(name)
    found, checked = set(), 0
    for key, rows in table.cells.groupby(group):
        if not key:
            continue  # the pre-trained model stands above both settings
        held = rows[rows["method"].isin(["FFT", "FFT (Upper Bound)"])]
        (fft,) = (row for _, row in held.iterrows())
        for (_, row), measure in itertools.product(rows.iterrows(), table.measures):
            printed = re.search(r"\(([+-].*)\)", row[measure])
            if not printed:
                continue
            checked += 1
            difference = as_number(row[measure]) - as_number(fft[measure])
            if abs(float(printed[1]) - difference) > 0.001:
                found.add((key, measure))
                assert measure in row["note"]
            assert float(printed[1]) * difference > 0
    assert found == apart
    assert checked == (8 if name == "mft_tab3" else 24)


@pytest.mark.parametrize(
    ("within", "across", "apart"),
    [
        (
            "mft_tab1",
            "mft_tab5",
            {("L1 Mask w/ Upper Bound", "Math"), ("L1 Mask w/ Upper Bound", "HumanEval+")},
        ),
        ("mft_tab2", "mft_tab6", {("Continued FFT", "IF-Eval")}),
    ],
)
def test_within_a_domain_both_tables_agree_but_for_the_known_slips(
    within: str, across: str, apart: set[tuple[str, str]]
) -> None:
    found = set()
    for (short, long), (domain, measures) in itertools.product(ROWS.items(), DOMAINS.items()):
        # One row of Table 6 spells its domain out.
        spelt = (
            "Instruction" if (across, long[:6], domain) == ("mft_tab6", "[Ours]", "IF") else domain
        )
        for measure in measures:
            one = as_number(cell(within, measure, setting="Specific Domain", method=short))
            other = cell(across, measure, method=f"{long} [{spelt}]")
            if one != as_number(other):
                found.add((short, measure))
                assert measure in cell(within, "note", setting="Specific Domain", method=short)
                assert measure in cell(across, "note", method=f"{long} [{spelt}]")
    assert found == apart


def test_one_row_stands_in_both_models_tables() -> None:
    for measure, value in (("HumanEval", "39.6"), ("HumanEval+", "36.6")):
        for name, setting in (("mft_tab1", "Mixed Domain"), ("mft_tab2", "Multi Domain")):
            row = {"setting": setting, "method": "L1 Mask w/ Upper Bound"}
            assert cell(name, measure, **row) == value
            assert measure in cell(name, "note", **row)
