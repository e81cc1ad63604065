"""A share that the fine-tune hardly has any of gets no panel."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from deltalens.figures import draw_named
from deltalens.figures.floors import above_floor, floor_note
from tests.support.gmt_studies import EXACT, write_sweep
from tests.support.mft_studies import write_study


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


def test_the_caption_names_what_is_left_out() -> None:
    assert floor_note([]) == ""
    assert floor_note([("maths", "maths/exact_match"), ("", "exact_match")] * 2) == (
        "Under 5 % at the fine-tune, and not drawn: exact match, exact match of maths."
    )


def test_a_share_under_the_floor_has_no_panel_in_a_mask_ratio_sweep(tmp_path: Path) -> None:
    low = {point: 0.01 for point in EXACT} | {("ft", 0.0, 0): 0.9}
    for name, values, labels in (
        ("low", low, ["loss\n(nats per target token)"]),
        ("high", EXACT, ["exact match (%)", "loss\n(nats per target token)"]),
    ):
        (drawing,) = draw_named("gmt-fig2", write_sweep(tmp_path / name, values))
        assert [axis.get_ylabel() for axis in drawing.figure.axes] == labels
        caption = " ".join(drawing.figure.get_supxlabel().split())
        assert ("not drawn: exact match of maths." in caption) == (name == "low")


@pytest.mark.parametrize(("trained", "shown"), [(0.9, 2), (0.04, 1)])
def test_a_share_that_only_the_untrained_model_lacks_has_its_panel(
    trained: float, shown: int, tmp_path: Path
) -> None:
    values = {("ft", 0, 0): 0.0, ("gmt", 0.5, 0): trained, ("gmt", 1.0, 0): trained}
    (drawing,) = draw_named("gmt-data", write_study(tmp_path / "s", "data-ratio-sweep", values))
    visible = [axis for axis in drawing.figure.axes if axis.get_visible()]
    assert len(visible) == shown
    said = "Under 5 % by every method, and not drawn: exact match"
    assert (said in " ".join(drawing.figure.get_supxlabel().split())) == (shown == 1)


@pytest.mark.parametrize(("trained", "scale"), [(0.995, "log"), (0.9, "linear")])
def test_losses_that_lie_decades_apart_have_a_logarithmic_axis(
    trained: float, scale: str, tmp_path: Path
) -> None:
    values = {("ft", 0, 0): 0.0, ("gmt", 0.5, 0): trained, ("gmt", 1.0, 0): trained}
    (drawing,) = draw_named("gmt-data", write_study(tmp_path / "s", "data-ratio-sweep", values))
    exact, loss = (axis for axis in drawing.figure.axes if axis.get_visible())
    assert (exact.get_yscale(), loss.get_yscale()) == ("linear", scale)
