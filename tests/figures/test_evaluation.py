"""The picture of an evaluation: over steps where models have them, else by name."""

from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltalens.errors import RecordError
from deltalens.figures import draw, draw_named
from deltalens.io.records import Measurement
from tests.support.evaluations import Scored, write_evaluation
from tests.support.finished_studies import make_study


def scored(training: str, step: int, match: float) -> Scored:
    numbers = {
        "exact_match": Measurement(match, 0.1, 25),
        "loss": Measurement(1 - match, 0.1, 25),
        "perplexity": Measurement(2.0, 0.1, 25),
    }
    return Scored(f"{training}/checkpoint-{step}", numbers, training, step)


def axes_of(folder: Path) -> list[Any]:
    (drawing,) = draw_named("evaluation", folder)
    return [axis for axis in drawing.figure.axes if axis.get_visible()]


def test_checkpoints_are_drawn_over_their_steps_a_line_for_each_training(tmp_path: Path) -> None:
    models = [scored("runs/a", 10, 0.2), scored("runs/a", 20, 0.4), scored("runs/b", 10, 0.1)]
    write_evaluation(tmp_path, [*models, Scored("base", models[0].metrics)])
    matches, losses = axes_of(tmp_path)
    lines = {line.get_label(): line for line in matches.lines}
    assert {*lines} == {"runs/a", "runs/b", "base"}
    assert lines["runs/a"].get_xdata().tolist() == [10, 20]
    assert lines["runs/a"].get_ydata().tolist() == pytest.approx([20, 40])
    assert (matches.get_xlabel(), matches.get_ylabel()) == ("training step", "exact match (%)")
    assert losses.get_ylabel() == "loss (nats per target token)"
    band = matches.collections[0].get_datalim(matches.transData)
    assert (band.y0, band.y1) == pytest.approx((10, 50))


def test_other_models_are_points_with_error_bars_by_name(tmp_path: Path) -> None:
    numbers = {"loss": Measurement(1.0, 0.25, 9)}
    write_evaluation(tmp_path, [Scored("models/a", numbers), Scored("models/b", numbers)])
    (axis,) = axes_of(tmp_path)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    (bars,) = axis.containers
    segments = bars.lines[2][0].get_segments()
    assert np.array(segments)[:, :, 0].tolist() == [[0.75, 1.25]] * 2
    low, high = axis.get_ylim()
    assert low > high, "the first model is at the top"


def test_a_task_that_measures_in_per_cent_is_not_scaled_again(tmp_path: Path) -> None:
    for name, f1, other in (("squad/f1", 81.5, 0.5), ("rte/f1", 0.4, 0.5), ("own", 1.5, 0.5)):
        numbers = [{name: Measurement(value, value / 10, 25)} for value in (f1, other)]
        folder = tmp_path / name.partition("/")[0]
        models = [Scored(model, each) for model, each in zip("ab", numbers, strict=True)]
        write_evaluation(folder, models, tasks=("squad", "rte"))
        (axis,) = axes_of(folder)
        (bars,) = axis.containers
        scale = {"rte/f1": 100}.get(name, 1)
        assert bars.lines[0].get_xdata().tolist() == pytest.approx([scale * f1, scale * other])


def test_what_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    losses = {10: 1.0, 20: inf, 30: nan, 40: 1e300}
    models = [
        Scored(f"a/checkpoint-{step}", {"loss": Measurement(loss)}, "a", step)
        for step, loss in losses.items()
    ]
    write_evaluation(tmp_path, models)
    assert all(picture.exists() for picture in draw(tmp_path))


def test_a_metric_that_is_asked_for_alone_is_drawn(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [Scored("a", {"perplexity": Measurement(2.0, 0.1, 9)})])
    (axis,) = axes_of(tmp_path)
    assert axis.get_xlabel() == "perplexity"


@pytest.mark.parametrize(("best", "panels"), [(0.05, 2), (0.049, 1)])
def test_a_share_that_every_model_has_hardly_any_of_has_no_panel(
    best: float, panels: int, tmp_path: Path
) -> None:
    write_evaluation(tmp_path, [scored("a", 10, 0.0), scored("b", 10, best)])
    (drawing,) = draw_named("evaluation", tmp_path)
    shown = [axis for axis in drawing.figure.axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in shown][-panels:] == [
        "exact match (%)",
        "loss (nats per target token)",
    ][-panels:]
    assert len(shown) == panels
    said = "Under 5 % by every model, and not drawn: exact match."
    assert (said in drawing.figure.get_supxlabel()) == (panels == 1)


def test_another_study_has_no_such_picture(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "landscape")
    with pytest.raises(RecordError, match="no evaluation with finished cells"):
        draw_named("evaluation", folder)
