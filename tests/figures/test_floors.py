"""A share that the fine-tune hardly has any of gets no panel."""

from __future__ import annotations

import pandas as pd
import pytest

from deltalens.figures.floors import above_floor


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"exact_match": 0.04, "loss": 0.01}, ["loss"]),
        ({"exact_match": 0.05, "loss": 0.01}, ["exact_match", "loss"]),
        (
            {"t/exact_match": 0.0, "gsm8k/strict-match/exact_match": 0.2},
            ["gsm8k/strict-match/exact_match"],
        ),
        ({"own_score": 0.0, "exact_match": 0.0}, ["own_score"]),
        ({"exact_match": 0.0}, ["exact_match"]),
    ],
)
def test_a_metric_under_five_per_cent_is_left_out(
    values: dict[str, float], shown: list[str]
) -> None:
    cells = pd.DataFrame({"metric": [*values], "value": [*values.values()]})
    assert above_floor([*values], cells) == shown


def test_a_metric_that_the_fine_tune_was_not_measured_by_stays() -> None:
    cells = pd.DataFrame({"metric": ["loss"], "value": [1.0]})
    assert above_floor(["exact_match", "loss"], cells) == ["exact_match", "loss"]
