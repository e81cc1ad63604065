"""What a salience study says, from records written by hand."""

from pathlib import Path

import pytest

from deltalens.errors import RecordError
from deltalens.io.records import load_study
from deltalens.reports.salience import SalienceSummary, summarize_salience
from tests.support.finished_studies import make_study
from tests.support.salience_studies import make_salience_study

PARTS = ("sample", "agreement", "fine-tune")


@pytest.fixture
def summary(tmp_path: Path) -> SalienceSummary:
    return summarize_salience(load_study(make_salience_study(tmp_path / "s", *PARTS)))


def test_it_says_what_the_numbers_mean(summary: SalienceSummary) -> None:
    assert [*summary.sentences()] == [
        "each mask keeps 40 of 4,000 weights, 0.2 % of the model",
        "gradient and SNIP share 40 % of their weights (Jaccard 0.25, 50 times chance)",
        "two halves of the calibration data, of 4 examples each, lead gradient to masks that share "
        "97 % of their weights, and SNIP 46 %",
        "8 examples suffice for gradient, if halves are to share 90 %",
        "of the weights that the fine-tune changed most, gradient chose 33.3 % (Jaccard 0.2, 40 "
        "times chance), SNIP 18.2 % (Jaccard 0.1, 20 times chance)",
        "the masks took 3.0 s together, 6 % of an epoch's passes over 200 rows; the 4 passes of a "
        "first-order metric alone take 4 %",
        "a mask's indices take 0.00016 MB as int32, 0.2 % of the model's weights",
    ]


def test_tables_show_where_and_how_far(summary: SalienceSummary) -> None:
    metrics, agreement = summary.tables()
    assert metrics.columns == (
        *("metric", "most in", "densest block", "1/2 : all", "two halves", "largest\nchanges"),
    )
    assert metrics.rows[0] == ("gradient", "v_proj (100 %)", "0", "0.500", "0.950", "0.200")
    assert metrics.rows[2] == ("random", "q_proj (50 %)", "0", "-", "-", "0.005")
    assert agreement.title == "agreement between metrics (Jaccard; by chance 0.005)"
    assert agreement.rows[1] == ("SNIP", "0.250", "", "0.010")


def test_scripts_get_every_number(summary: SalienceSummary) -> None:
    found = summary.as_json()
    assert found["budget"]["gradient"]["model.layers.0/self_attn.v_proj"] == 0.03
    assert found["agreement"][0] == {
        **{"of": "gradient", "with": "snip"},
        **{"jaccard": 0.25, "chance": 0.005},
    }
    assert found["share_of_an_epoch"] == pytest.approx(3 / 50)


def test_what_is_not_measured_is_not_spoken_of(tmp_path: Path) -> None:
    summary = summarize_salience(load_study(make_salience_study(tmp_path / "s")))
    said = " ".join(summary.sentences())
    assert "halves" not in said
    assert "fine-tune" not in said
    (only,) = summary.tables()
    assert only.columns == ("metric", "most in", "densest block")


def test_another_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no salience study"):
        summarize_salience(load_study(make_study(tmp_path / "s", "inspect")))
