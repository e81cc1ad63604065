"""A study's ranking beside the paper's."""

from __future__ import annotations

import math

import pytest
from scipy.stats import spearmanr

from deltalens.errors import DeltaLensError
from deltalens.io.papers import as_number, paper_table
from deltalens.io.tables import ranks
from deltalens.reports.ranking import rank_beside_paper

MEANS = {"LoRA": 0.80, "PiSSA": 0.82, "Magnitude": 0.7, "Gradient": 0.85, "SNIP": 0.84}


def test_ranks_are_among_the_methods_that_both_have() -> None:
    """The paper on OPT-350m: gradient 88.45, LoRA 88.32, PiSSA 87.93, SNIP 87.60, magnitude
    77.01."""
    found = rank_beside_paper({**MEANS, "Random": 0.99, "": 0.9, "FORCE": math.nan})
    assert found.model == "OPT-350m"
    assert [(row.method, row.rank, row.paper_rank) for row in found.rows] == [
        ("Gradient", 1, 1),
        ("SNIP", 2, 4),
        ("PiSSA", 3, 3),
        ("LoRA", 4, 2),
        ("Magnitude", 5, 5),
    ]
    assert found.rows[1].paper_value == 87.60


def test_agreement_is_spearmans_correlation_of_ties_too() -> None:
    means = {**MEANS, "Taylor-FO": 0.84, "FORCE": 0.6, "Fisher-Info": 0.84}
    printed = paper_table("speft_tab9").cells.set_index("method")["Avg."].map(as_number)
    found = rank_beside_paper(means, "speft_tab9")
    other = spearmanr([*means.values()], [printed[name] for name in means]).statistic
    assert found.agreement == pytest.approx(other)
    assert -0.9 < found.agreement < 0.9


def test_the_papers_own_order_agrees_and_the_opposite_does_not() -> None:
    cells = paper_table("speft_tab2").cells
    own = dict(zip(cells["method"], map(as_number, cells["Avg."]), strict=True))
    assert rank_beside_paper(own, "speft_tab2").agreement == pytest.approx(1)
    lower = rank_beside_paper(own, "speft_tab2", lower_is_better=True)
    assert lower.agreement == pytest.approx(-1)
    assert lower.rows[0].method == "Fisher-Info"


def test_what_cannot_be_ranked_has_no_agreement() -> None:
    for means in ({}, {"LoRA": 0.5}, {"LoRA": 0.5, "Random": 0.6}):
        found = rank_beside_paper(means)
        assert math.isnan(found.agreement)
        assert "fewer than two methods" in found.sentence()
    assert math.isnan(rank_beside_paper({"LoRA": 0.5, "PiSSA": 0.5}).agreement)
    # Of Table 10 a single average survives.
    assert len(rank_beside_paper(MEANS, "speft_tab10").rows) == 1


def test_it_is_told_in_a_sentence() -> None:
    told = rank_beside_paper(MEANS, model="OPT-350m").sentence()
    assert told == (
        "the paper's ranking (OPT-350m): Gradient, LoRA, PiSSA, SNIP, Magnitude; this study's: "
        "Gradient, SNIP, PiSSA, LoRA, Magnitude; Spearman's correlation 0.60"
    )


def test_a_model_or_table_that_ranks_nothing_is_refused() -> None:
    with pytest.raises(DeltaLensError, match="no model 'OPT'; it has OPT-350m, BERT-base-uncased"):
        rank_beside_paper(MEANS, model="OPT")
    with pytest.raises(DeltaLensError, match="no models to choose from"):
        rank_beside_paper(MEANS, "speft_tab2", "OPT-350m")
    for table in ("speft_tab3", "speft_tab4", "gmt_tab4"):
        with pytest.raises(DeltaLensError, match="no averages of methods"):
            rank_beside_paper(MEANS, table)
    with pytest.raises(DeltaLensError, match="no paper's table 'speft_tab99'"):
        rank_beside_paper(MEANS, "speft_tab99")


def test_equal_numbers_share_the_mean_of_their_places() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [1.5, 4.0, 1.5, 3.0]
    assert ranks([3.0, 1.0, 3.0, 2.0], lower_is_better=True) == [3.5, 1.0, 3.5, 2.0]
    assert ranks([]) == []
