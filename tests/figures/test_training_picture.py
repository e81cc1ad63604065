"""A training's curves are what its folder logged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deltalens.cli.main import app
from deltalens.errors import RecordError
from deltalens.figures import draw, draw_named
from deltalens.io.checksum import sealed

Line = dict[str, Any]


def step(number: int, **more: Any) -> Line:
    return {
        "step": number,
        "loss": 2.0 / number,
        "learning_rate": 1e-4 / number,
        "grad_norm": 3.0 * number,
        **more,
    }


def evaluated(number: int, match: float, **more: Any) -> Line:
    scores = {"exact_match": [match, 0.1, 25], "loss": [1 - match, 0.02, 25], **more}
    return {"step": number, "evaluated": {**scores, "perplexity": [2.0, 0.1, 25]}}


def write(folder: Path, lines: Sequence[Line], **asked: Any) -> Path:
    """The folder of a training, as far as a picture reads it."""
    folder.mkdir(parents=True)
    spec = {"method": "sft", "data": ["maths_train", 9, "d"], "eval_data": [["maths", 25, "d"]]}
    facts = asked.pop("facts", {"model": "models/small", "units": {"loss": "nats per token"}})
    record = {"format": 2, "deltalens": "0", "identity": 3, "asked": spec | asked, "facts": facts}
    (folder / "train.json").write_text(json.dumps(sealed(record)))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def axes_of(folder: Path) -> dict[str, Any]:
    """Label of the y-axis -> axis, of a training's picture."""
    (drawing,) = draw_named("training", folder)
    return {axis.get_ylabel(): axis for axis in drawing.figure.axes if axis.get_visible()}


def lines(axis: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): ([*map(float, line.get_xdata())], [*map(float, line.get_ydata())])
        for line in axis.lines
    }


def test_every_curve_has_its_panel_and_its_unit(tmp_path: Path) -> None:
    logged = [step(1), step(2), evaluated(2, 0.25), step(3), evaluated(3, 0.5)]
    axes = axes_of(write(tmp_path / "t", logged))
    assert [*axes] == [
        *("loss (nats per token)", "exact match (%)", "loss (nats per target token)"),
        *("gradient norm", "learning rate"),
    ]
    assert {axis.get_xlabel() for axis in axes.values()} == {"optimizer step"}
    assert lines(axes["loss (nats per token)"])["training"] == (
        [1, 2, 3],
        pytest.approx([2, 1, 2 / 3]),
    )
    scores = axes["exact match (%)"]
    assert lines(scores)["maths"] == ([2, 3], pytest.approx([25, 50]))
    (band,) = scores.collections
    edges = {round(float(y), 6) for y in band.get_paths()[0].vertices[:, 1]}
    assert edges == {15, 35, 40, 60}
    assert [*lines(axes["gradient norm"]).values()] == [([1, 2, 3], [3, 6, 9])]
    assert [*lines(axes["learning rate"]).values()] == [
        ([1, 2, 3], pytest.approx([1e-4, 5e-5, 1e-4 / 3]))
    ]


def test_only_what_was_logged_has_a_panel(tmp_path: Path) -> None:
    assert [*axes_of(write(tmp_path / "t", [{"step": 1, "loss": 1.0}], facts={}))] == ["loss"]


def test_several_data_sets_share_the_panel_of_a_metric(tmp_path: Path) -> None:
    scores = {"maths/exact_match": [0.2, None, 9], "code/exact_match": [0.4, None, 9]}
    sets = [["maths", 9, "d"], ["code", 9, "d"]]
    logged = [step(1), {"step": 1, "evaluated": scores}]
    axes = axes_of(write(tmp_path / "t", logged, eval_data=sets))
    assert lines(axes["exact match (%)"]) == {
        "maths": ([1], pytest.approx([20])),
        "code": ([1], pytest.approx([40])),
    }


def test_many_steps_have_a_mean_over_those_before(tmp_path: Path) -> None:
    axes = axes_of(write(tmp_path / "t", [step(number, loss=number) for number in range(1, 101)]))
    shown = lines(axes["loss (nats per token)"])
    assert shown["_each step"][1] == [*range(1, 101)]
    # The mean of five steps, at the last of them.
    assert shown["training"][0][0] == 5
    assert shown["training"][1][0] == pytest.approx(3)
    (drawing,) = draw_named("training", tmp_path / "t")
    assert "the mean of the last 5" in drawing.figure.get_supxlabel()


def test_the_checkpoint_that_is_kept_is_marked(tmp_path: Path) -> None:
    logged = [step(1), {"step": 1, "choosing": {"loss": [0.5, 0.1, 9]}}, step(2)]
    facts = {"chosen_step": 1, "units": {"loss": "nats per token"}}
    loss = axes_of(write(tmp_path / "t", logged, facts=facts))["loss (nats per token)"]
    assert lines(loss)["rows that choose the checkpoint"] == ([1], [0.5])
    assert lines(loss)["checkpoint that is kept: step 1"][0] == [1, 1]


def test_a_training_that_diverges_leaves_a_gap(tmp_path: Path) -> None:
    logged = [step(1, loss="nan"), step(2, loss=1e300, grad_norm="inf"), step(3)]
    folder = write(tmp_path / "t", [*logged, evaluated(3, 0.5, loss=["inf", "nan", 9])])
    axes = axes_of(folder)
    shown = lines(axes["loss (nats per token)"])["training"][1]
    assert [math.isnan(value) for value in shown] == [True, True, False]
    assert all(picture.exists() for picture in draw(folder))


def test_plot_draws_the_curves_under_a_title_beside_the_training(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", [step(1), step(2)])
    said = CliRunner().invoke(app, ["plot", str(folder), "--pdf"])
    assert said.exit_code == 0, said.output
    assert {path.name for path in folder.glob("training.*")} == {
        *("training.png", "training.svg", "training.pdf")
    }
    assert "small, sft, maths_train → maths" in (folder / "training.svg").read_text()


def test_learned_masks_are_drawn_as_well_and_given_ones_only_without_curves(
    tmp_path: Path,
) -> None:
    facts = {"removed": {"model.layers.0.mlp.up_proj": 0.1}, "removed_of_all": 0.1}
    drawn = {
        name: {path.stem for path in draw(write(tmp_path / name, logged, facts=facts, **asked))}
        for name, logged, asked in (
            ("learned", [step(1)], {"threshold": -0.1}),
            ("given", [step(1)], {"threshold": None}),
            ("silent", [], {"threshold": None}),
        )
    }
    assert drawn == {
        "learned": {"training", "removed_shares"},
        "given": {"training"},
        "silent": {"removed_shares"},
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "no step logged yet"),
        ([evaluated(1, 0.5)], "no step logged yet"),
        ([step(1, loss="low")], "damaged: 'loss' is 'low'"),
        ([step(1, grad_norm=True)], "damaged: 'grad_norm' is True"),
        ([step(1), {"step": 1, "evaluated": {"loss": 3}}], "damaged: an evaluation is"),
        ([step(1), {"step": 1, "choosing": [3]}], "damaged: an evaluation is"),
    ],
)
def test_a_training_without_curves_or_with_damaged_ones_is_refused(
    tmp_path: Path, lines: list[Line], said: str
) -> None:
    with pytest.raises(RecordError, match=said):
        draw(write(tmp_path / "t", lines))


def test_another_folder_is_no_training(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"train\.json"):
        draw_named("training", tmp_path)
