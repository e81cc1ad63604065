"""What a drop study says in the end, from study folders made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import RecordError
from deltalens.io.plain_json import encode_finite
from deltalens.io.records import Cell, Measurement, StudyFolder, load_study
from deltalens.reports.drop import DropSummary, summarize_drop_study
from tests.support.edits import changed

COLUMNS = ("strategy", "scope", "rate", "seed")
RATES = (0.0, 0.3, 0.6, 0.9, 1.0)

Values = dict[str, dict[tuple[str, int], tuple[float, ...]]]
"""Metric -> (strategy, seed) -> a value for each rate."""

MATHS: Values = {
    "exact_match": {
        ("salient", 0): (0.80, 0.30, 0.10, 0.05, 0.0),
        ("trivial", 0): (0.80, 0.796, 0.77, 0.50, 0.0),
        ("random", 0): (0.80, 0.79, 0.60, 0.20, 0.0),
        ("random", 1): (0.80, 0.77, 0.40, 0.30, 0.0),
    },
    "loss": {
        ("salient", 0): (0.2, 1.0, 1.5, 1.9, 2.2),
        ("trivial", 0): (0.2, 0.201, 0.25, 0.9, 2.2),
        ("random", 0): (0.2, 0.21, 0.6, 1.7, 2.2),
        ("random", 1): (0.2, 0.23, 0.8, 1.8, 2.2),
    },
}


Make = Callable[..., DropSummary]


@pytest.fixture
def summary_of(tmp_path: Path) -> Make:
    def make(values: Values, rates: tuple[float, ...] = RATES, **facts: Any) -> DropSummary:
        write(tmp_path, values, rates, facts)
        return summarize_drop_study(load_study(tmp_path))

    return make


def write(folder: Path, values: Values, rates: tuple[float, ...], facts: dict[str, Any]) -> None:
    spec = {"changed_only": facts.pop("changed_only", False)}
    study = StudyFolder.open(folder, "drop-study", spec, COLUMNS)
    study.facts = {"entries": 1000, "unchanged": 250, "notes": ["a note"], **facts}
    study.write_manifest()
    for strategy, seed in next(iter(values.values())):
        for place, rate in enumerate(rates):
            setting = {"strategy": strategy, "scope": "tensor", "rate": rate, "seed": seed}
            measured = {
                metric: Measurement(found[strategy, seed][place], 0.01, 300)
                for metric, found in values.items()
            }
            study.append(Cell(setting, measured, 0.1))
    study.close()


def test_sentences_say_what_holds_and_what_breaks(summary_of: Make) -> None:
    assert list(summary_of(MATHS).sentences()) == [
        "exact_match: fine-tune 0.8000, base 0",
        "trivial: within 1 % of the fine-tune up to rate 0.3, within 5 % up to rate 0.6; keeps "
        "over half of the gain from tuning at every rate below 1",
        "salient: already more than 5 % worse than the fine-tune at rate 0.3; loses over half of "
        "the gain from tuning at rate 0.3",
        "random: within 5 % of the fine-tune up to rate 0.3; loses over half of the gain from "
        "tuning at rate 0.9 (mean of 2 random orders)",
        "25.00 % of the entries are exactly unchanged: below that rate a trivial drop changes "
        "nothing (changed_only leaves them out)",
    ]


def test_within_is_lost_at_the_first_rate_that_is_too_far(summary_of: Make) -> None:
    values: Values = {"exact_match": {("trivial", 0): (0.8, 0.5, 0.8, 0.8, 0.1)}}
    found = summary_of(values)
    assert found.strategies[0].within == {0.01: None, 0.05: None}
    said = "within 1 % of the fine-tune at no rate, within 5 % at no rate"
    assert said in list(found.sentences())[1]


def test_no_distance_in_per_cent_where_ratios_say_nothing(summary_of: Make) -> None:
    """A margin has no zero: 5 % of it is no amount of it."""
    values: Values = {"reward_margin": {("trivial", 0): (0.1, 0.099, 0.05, -0.6, -2.0)}}
    found = summary_of(values)
    assert found.strategies[0].within == {}
    said = "trivial: keeps over half of the gain from tuning at every rate below 1"
    assert [*found.sentences()][1] == said
    assert found.as_json()["strategies"]["trivial"]["half_lost_at"] is None


def test_low_is_good_for_a_loss(summary_of: Make) -> None:
    found = summary_of({"loss": MATHS["loss"]})
    trivial = next(one for one in found.strategies if one.strategy == "trivial")
    assert trivial.within == {0.01: 0.3, 0.05: 0.3}
    assert trivial.broken is None
    salient = next(one for one in found.strategies if one.strategy == "salient")
    assert salient.broken == 0.6


def test_random_is_the_mean_over_seeds(summary_of: Make) -> None:
    random = next(one for one in summary_of(MATHS).strategies if one.strategy == "random")
    assert random.values[0.6] == pytest.approx(0.5)
    assert random.values[0.3] == pytest.approx(0.78)


@pytest.mark.parametrize(
    ("names", "leading"),
    [
        (["loss", "perplexity", "exact_match"], "exact_match"),
        (["kl", "top1_agreement"], "top1_agreement"),
        (["perplexity", "loss"], "loss"),
        (["a/loss", "a/exact_match", "b/exact_match"], "a/exact_match"),
        (["kl"], "kl"),
        (["my own"], "my own"),
    ],
)
def test_leading_metric(summary_of: Make, names: list[str], leading: str) -> None:
    line = {("trivial", 0): (1.0, 0.9, 0.8, 0.7, 0.5)}
    assert summary_of(dict.fromkeys(names, line)).metric == leading


@pytest.mark.parametrize(
    ("better", "values"),
    [("lower", (1.0, 1.1, 1.6, 1.9, 2.0)), ("higher", (2.0, 1.9, 1.4, 1.1, 1.0))],
)
def test_metric_of_one_s_own_is_better_the_way_that_was_said(
    summary_of: Make, better: str, values: tuple[float, ...]
) -> None:
    line: Values = {"my own": {("trivial", 0): values}}
    assert summary_of(line, better={"my own": better}).strategies[0].broken == 0.6


def test_fine_tune_that_is_worse_than_its_base_is_not_taken_for_better(summary_of: Make) -> None:
    line: Values = {"my own": {("trivial", 0): (2.0, 1.9, 1.4, 1.1, 1.0)}}
    said = list(summary_of(line, better={"my own": "lower"}).sentences())
    assert "on my own the fine-tune is not better than the base" in said
    assert not any("half" in sentence for sentence in said)


def test_without_a_direction_nothing_is_claimed_that_needs_one(summary_of: Make) -> None:
    found = summary_of({"my own": {("trivial", 0): (1.0, 1.1, 1.6, 1.9, 2.0)}})
    said = list(found.sentences())
    assert said[0] == "my own: fine-tune 1.0000, base 2.0000"
    assert said[1].startswith("my own: unknown whether higher or lower is better")
    assert "better={'my own': 'higher'}" in said[1]
    assert not any(word in " ".join(said[2:]) for word in ("within", "half", "gain"))
    assert found.as_json()["strategies"]["trivial"]["within"] == {}


def test_metric_with_a_direction_leads_before_one_without(summary_of: Make) -> None:
    line = {("trivial", 0): (1.0, 0.9, 0.8, 0.7, 0.5)}
    found = summary_of(dict.fromkeys(["a", "b"], line), better={"b": "higher"})
    assert found.metric == "b"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_cell_that_is_not_finite_is_named_and_is_in_no_claim(summary_of: Make, bad: float) -> None:
    values: Values = {
        "loss": {
            ("trivial", 0): (0.2, 0.2, bad, 0.2, 2.0),
            ("random", 0): (0.2, 0.2, 0.2, bad, 2.0),
            ("random", 1): (0.2, 0.2, 0.2, 0.2, 2.0),
        }
    }
    found = summary_of(values)
    trivial = found.strategies[0]
    assert trivial.within == {0.01: 0.3, 0.05: 0.3}
    assert trivial.broken is None
    said = list(found.sentences())
    assert "values of loss that are not finite are left out: trivial at 0.6; random at 0.9" in said
    assert "over half of the gain from tuning at every rate below 1 with a finite" in said[1]
    # The mean over seeds is not that of the seeds that are finite.
    assert found.tables()[0].rows[3][2] in ("nan", "inf", "-inf")


def test_nothing_is_compared_with_a_fine_tune_that_is_not_finite(summary_of: Make) -> None:
    found = summary_of({"loss": {("trivial", 0): (math.nan, 0.2, 0.2, 0.2, 2.0)}})
    said = list(found.sentences())
    assert said[1] == "loss of the fine-tune is not finite, so nothing can be compared with it"
    assert len(said) == 3
    assert found.strategies[0].within == {}


def test_base_that_is_not_finite_leaves_the_fine_tune_to_compare_with(summary_of: Make) -> None:
    found = summary_of({"loss": {("trivial", 0): (0.2, 0.2, 0.2, 9.0, math.inf)}})
    said = list(found.sentences())
    assert (
        said[1] == "trivial: within 1 % of the fine-tune up to rate 0.6, within 5 % up to rate 0.6"
    )
    assert said[2] == "loss of the base is not finite, so the gain from tuning is unknown"


def test_tables_show_rates_down_and_strategies_across(summary_of: Make) -> None:
    tables = summary_of(MATHS).tables()
    assert [table.title for table in tables] == ["exact_match", "loss"]
    assert tables[0].columns == ("drop rate", "salient", "trivial", "random")
    assert [row[0] for row in tables[0].rows] == ["0", "0.3", "0.6", "0.9", "1"]
    assert tables[0].rows[1] == ("0.3", "0.3000", "0.7960", "0.7800 ± 0.0141")
    assert tables[0].rows[0] == ("0", "0.8000", "0.8000", "0.8000")


def test_table_shows_a_dash_for_a_cell_that_is_not_finished(tmp_path: Path) -> None:
    write(tmp_path, {"loss": {("trivial", 0): MATHS["loss"]["trivial", 0]}}, RATES, {})
    journal = tmp_path / "cells.jsonl"
    lines = journal.read_bytes().splitlines()
    first = changed(lines[0], lambda cell: cell["setting"].update(strategy="random"))
    journal.write_bytes(b"\n".join([*lines, first]) + b"\n")
    rows = summarize_drop_study(load_study(tmp_path)).tables()[0].rows
    assert rows[0][2] == "0.2000"
    assert [row[2] for row in rows[1:]] == ["-"] * 4


@pytest.mark.parametrize(
    ("facts", "hint"),
    [
        ({"unchanged": 250}, True),
        ({"unchanged": 4}, False),
        ({"unchanged": 250, "changed_only": True}, False),
    ],
)
def test_hint_about_unchanged_entries_is_given_where_it_matters(
    summary_of: Make, facts: dict[str, Any], hint: bool
) -> None:
    last = list(summary_of(MATHS, **facts).sentences())[-1]
    assert last.startswith(f"{facts['unchanged'] / 10:.2f} % of the entries are exactly unchanged")
    assert ("changed_only" in last) == hint


def test_json_holds_the_summary(summary_of: Make, tmp_path: Path) -> None:
    found = json.loads(json.dumps(encode_finite(summary_of(MATHS).as_json())))
    assert set(found) == {
        *("study", "metric", "better", "fine_tuned", "base", "unchanged", "entries"),
        *("strategies", "notes"),
    }
    assert (found["study"], found["metric"]) == (str(tmp_path), "exact_match")
    assert (found["fine_tuned"], found["base"]) == (0.8, 0.0)
    assert (found["unchanged"], found["entries"], found["notes"]) == (0.25, 1000, ["a note"])
    assert found["strategies"]["trivial"] == {
        "values": {"0": 0.8, "0.3": 0.796, "0.6": 0.77, "0.9": 0.5, "1": 0.0},
        "within": {"0.01": 0.3, "0.05": 0.6},
        "half_lost_at": None,
    }
    assert found["strategies"]["salient"]["half_lost_at"] == 0.3


def test_json_has_null_for_what_is_no_number(summary_of: Make) -> None:
    values: Values = {"loss": {("trivial", 0): (0.2, math.nan, math.inf, 0.2, 2.0)}}
    found = encode_finite(summary_of(values).as_json())
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["strategies"]["trivial"]["values"]["0.3"] is None


def test_study_without_both_ends_is_too_young_for_a_summary(summary_of: Make) -> None:
    with pytest.raises(RecordError, match="the fine-tune and the base are not measured yet"):
        summary_of({"loss": {("trivial", 0): (0.2, 0.2)}}, rates=(0.0, 0.5))


def test_other_kind_of_study_is_refused(tmp_path: Path) -> None:
    study = StudyFolder.open(tmp_path, "inspect", {}, ("level", "name"))
    study.append(Cell({"level": "overall", "name": "all"}, {}, 0.0))
    study.close()
    with pytest.raises(RecordError, match="holds a study of kind 'inspect', not a drop study"):
        summarize_drop_study(load_study(tmp_path))
