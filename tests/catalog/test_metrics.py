"""What is known of a metric by its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deltalens.catalog.metrics import (
    METRICS,
    Better,
    axis_label,
    better_of,
    check_better,
    is_shown,
    is_worse,
    leading,
    scale_of,
)
from deltalens.errors import DeltaLensError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("metric", ["loss", "test/loss", "loss@100", "my/test/loss@100"])
def test_metric_is_known_by_its_own_name_whatever_the_data_and_the_step(metric: str) -> None:
    assert better_of(metric) == "lower"
    assert axis_label(metric) == "loss (nats per target token)"


def test_fractions_are_shown_in_per_cent() -> None:
    assert axis_label("exact_match") == "exact match (%)"
    assert (scale_of("a/exact_match"), scale_of("loss"), scale_of("my_own")) == (100, 1, 1)


def test_label_names_the_model_that_is_measured_against() -> None:
    assert axis_label("kl", "the origin") == "KL(the origin ‖ model) (nats per token)"
    assert axis_label("top1_agreement") == "top-1 agreement with the fine-tune (%)"


def test_metric_of_one_s_own_has_no_direction_but_the_one_given() -> None:
    own: dict[str, Better] = {"score": "higher", "b/score": "lower"}
    assert better_of("score") is None
    assert better_of("a/score", own) == "higher"
    assert better_of("b/score", own) == "lower"
    assert (axis_label("my_own"), is_shown("my_own")) == ("my own", True)


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_nothing_is_worse_than_no_number(value: float) -> None:
    assert not is_worse(value, float("nan"), "higher")
    assert not is_worse(float("nan"), value, "lower")


def test_leading_metric_is_the_same_for_every_summary() -> None:
    assert leading(["perplexity", "loss", "exact_match"]) == "exact_match"
    assert leading(["mine", "yours"], {"yours": "lower"}) == "yours"
    assert leading(["mine", "yours"]) == "mine"
    assert leading([]) is None


def test_directions_are_checked() -> None:
    assert check_better({"score": "higher"}, custom=True) == {"score": "higher"}
    with pytest.raises(DeltaLensError, match="'score' is 'up'; write 'higher' or 'lower'"):
        check_better({"score": "up"}, custom=True)
    with pytest.raises(DeltaLensError, match="the direction of your own metric"):
        check_better({"loss": "higher"}, custom=False)


def test_methods_page_lists_exactly_the_metrics_of_an_evaluation() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text.split("## Metrics", 1)[1].split("\n## ", 1)[0]
    rows = {line.split("|")[1].strip().strip("`") for line in section.splitlines() if "|" in line}
    named = {name for name in rows if re.fullmatch(r"[a-z0-9_]+", name)} - {"metric"}
    assert named == {*METRICS} - {"training_loss"}
