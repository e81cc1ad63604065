"""SPEFT's printed numbers, as data: spot values, and the slips that are known."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.io.papers import LOST, as_deviation, as_number, paper_table

ROUNDING = 0.00501
"""Half of the last printed place."""
SCORED = ("speft_tab1", "speft_tab2", "speft_tab9", "speft_tab11")
"""The tables whose body survives."""


def cell(table: str, column: str, **labels: str) -> str:
    cells = paper_table(table).cells
    for name, value in labels.items():
        cells = cells[cells[name] == value]
    (found,) = cells[column]
    return str(found)


def scores(table: str) -> list[str]:
    """The columns of tasks."""
    return [name for name in paper_table(table).measures if name not in ("Avg.", "#")]


def rows(table: str) -> Iterator[Any]:
    for _, row in paper_table(table).cells.iterrows():
        yield row


@pytest.mark.parametrize(
    ("number", "height"),
    [
        *((1, 20), (2, 9), (3, 11), (4, 12), (5, 4), (6, 2)),
        *((7, 14), (8, 14), (9, 10), (10, 10), (11, 9), (12, 10)),
    ],
)
def test_every_table_is_there(number: int, height: int) -> None:
    table = paper_table(f"speft_tab{number}")
    assert "2412.13488" in table.source
    assert table.source.endswith(f"Table {number}")
    assert len(table.cells) == height
    assert table.holds == ("settings" if number in (5, 6, 7, 8) else "numbers")


@pytest.mark.parametrize("name", SCORED)
def test_every_score_of_a_surviving_table_is_there(name: str) -> None:
    assert all(math.isfinite(as_number(row[score])) for row in rows(name) for score in scores(name))


def test_spot_values() -> None:
    opt, bert = {"model": "OPT-350m"}, {"model": "BERT-base-uncased"}
    assert cell("speft_tab1", "MNLI", **opt, method="LoRA") == "83.56±.07"
    assert cell("speft_tab1", "STS-B", **opt, method="Magnitude") == "45.04±3.39"
    assert cell("speft_tab1", "Avg.", **bert, method="Fisher-Info") == "86.91±.18"
    assert cell("speft_tab1", "STS-B", **bert, method="Taylor-FO") == "80.87±.46"
    assert cell("speft_tab2", "Qwen2-7b, OASST2", method="SNIP") == "70.52"
    assert cell("speft_tab4", "Avg.", **opt, **{"S / D": "D", "G / L": "L"}) == "81.76"
    assert cell("speft_tab5", "OPT-1.3b", hyperparameter="ρ") == "0.18%"
    assert cell("speft_tab6", "Qwen2-7b", hyperparameter="ρ") == "0.53%"
    assert cell("speft_tab7", "Gemma2-2b", hyperparameter="Sparse Top k") == "0.18%"
    assert cell("speft_tab8", "Llama3-8b", hyperparameter="LoRA r") == "64"
    assert cell("speft_tab9", "MRPC", method="Magnitude") == "31.62±2.05"
    assert cell("speft_tab10", "Avg.", method="Gradient") == "86.92"
    assert cell("speft_tab11", "QQP", method="Magnitude") == "90.41"
    assert {cell("speft_tab12", "MBPP", method=row["method"]) for row in rows("speft_tab12")} == {
        LOST
    }


@pytest.mark.parametrize("name", SCORED)
def test_printed_averages_are_those_of_the_printed_scores(name: str) -> None:
    for row in rows(name):
        values = [as_number(row[score]) for score in scores(name)]
        assert sum(values) / len(values) == pytest.approx(as_number(row["Avg."]), abs=ROUNDING)


@pytest.mark.parametrize(("name", "apart"), [("speft_tab1", 16), ("speft_tab9", 6)])
def test_most_deviations_of_averages_are_no_average_of_deviations(name: str, apart: int) -> None:
    """Against the caption; each of them carries a note, which has the average."""
    found = 0
    for row in rows(name):
        values = [as_deviation(row[score]) for score in scores(name)]
        average = sum(values) / len(values)
        noted = re.search(r"Avg\.: the six printed deviations average (\.\d\d)", row["note"])
        # Each printed deviation is rounded, too.
        differs = abs(average - as_deviation(row["Avg."])) > 2 * ROUNDING
        assert differs == bool(noted)
        if noted:
            found += 1
            assert float(noted[1]) == pytest.approx(average, abs=ROUNDING)
    assert found == apart


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        (
            "speft_tab1",
            {("OPT-350m", "LoRA"), ("OPT-350m", "FORCE"), ("BERT-base-uncased", "Gradient")},
        ),
        ("speft_tab9", set()),
        ("speft_tab11", set()),
    ],
)
def test_best_tasks_are_counted_right_but_for_the_known_slips(
    name: str, apart: set[tuple[str, str]]
) -> None:
    found = set()
    for model, group in paper_table(name).cells.groupby("model"):
        best = {score: max(map(as_number, group[score])) for score in scores(name)}
        for _, row in group.iterrows():
            counted = sum(as_number(row[score]) == most for score, most in best.items())
            noted = re.search(r"#: best in (\d) tasks? by", row["note"])
            assert (counted != int(row["#"])) == bool(noted)
            if noted:
                found.add((str(model), str(row["method"])))
                assert int(noted[1]) == counted
    assert found == apart


def test_what_the_text_says_of_the_best_fits_the_tables_but_for_the_known_slips() -> None:
    opt = paper_table("speft_tab1").cells.query("model == 'OPT-350m'")
    best = {
        score: sorted(opt["method"][opt[score].map(as_number) == max(map(as_number, opt[score]))])
        for score in scores("speft_tab1")
    }
    assert best["QNLI"] == ["FORCE"]
    assert best["SST-2"] == ["FORCE", "GRaSP"]
    assert best["QQP"] == ["LoRA", "PiSSA"]
    assert {score for score, methods in best.items() if methods == ["Gradient"]} == {
        *("MNLI", "MRPC", "STS-B")
    }
    noted = " ".join(paper_table("speft_tab1").notes)
    assert "the best on QNLI is FORCE (89.75)" in noted
    assert "the best on SST-2 are FORCE and GRaSP (94.04)" in noted


def test_gradient_is_the_best_on_average_wherever_averages_survive() -> None:
    for name in SCORED:
        cells = paper_table(name).cells
        groups = [group for _, group in cells.groupby("model")] if "model" in cells else [cells]
        for group in groups:
            averages = dict(zip(group["method"], map(as_number, group["Avg."]), strict=True))
            assert max(averages, key=averages.__getitem__) == "Gradient"


def test_static_masks_in_two_tables_differ_in_the_last_place() -> None:
    """Both are gradient's global, static masks on OPT-350m."""
    one = cell("speft_tab1", "Avg.", model="OPT-350m", method="Gradient")
    again = {"model": "OPT-350m", "S / D": "S", "G / L": "G"}
    assert (as_number(one), cell("speft_tab4", "Avg.", **again)) == (88.45, "88.46")
    assert "Table 1 has 88.45" in cell("speft_tab4", "note", **again)
    mrpc = cell("speft_tab1", "MRPC", model="OPT-350m", method="Gradient")
    assert as_deviation(mrpc) > 0.5  # Table 4's caption: below 0.5


def test_one_score_stands_in_two_rows_of_qwen() -> None:
    for method in ("Taylor-FO", "Fisher-Info"):
        assert cell("speft_tab2", "Qwen2-7b, OASST2", method=method) == "69.10"
        assert "Qwen2-7b, OASST2" in cell("speft_tab2", "note", method=method)


def test_table_7_has_another_density_than_the_tables_it_belongs_to() -> None:
    row = {"method": "Sparse", "hyperparameter": "Sparse Top k"}
    assert cell("speft_tab7", "Gemma2-2b", **row) == "0.18%"
    assert cell("speft_tab6", "Gemma2-2b", method="Sparse", hyperparameter="ρ") == "0.97%"
    assert "0.97%" in cell("speft_tab7", "note", **row)


@pytest.mark.parametrize("name", [*SCORED, "speft_tab3", "speft_tab10", "speft_tab12"])
def test_the_rows_are_lora_pissa_and_our_metrics_by_the_papers_names(name: str) -> None:
    metrics = {facts.printed for facts in SALIENCE_METRICS.values() if facts.printed}
    for_reference = {"LoRA", "PiSSA", "Pretrained"}
    methods = {str(row["method"]) for row in rows(name)}
    assert methods - for_reference == metrics
    assert len(metrics) == 8
