"""A run's pictures: overlap beyond chance on one scale, and a name on every axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deltalens.figures import draw_named
from deltalens.figures.run_masks import above_chance, draw_overlap, draw_overlap_by_layer
from deltalens.figures.run_time import RunTime
from tests.cli.test_monitor import train

CHANCE = {0.2: 2 / 3, 0.9: 1 / 19}
"""Mask ratio -> the Jaccard index of two random masks: k / (2 - k) of the share k that is kept."""


def overlaps(above: float, **changed: Any) -> pd.DataFrame:
    """A run's masks at three steps, two layers and two ratios: so far above chance as `above` in
    the first layer, and half as far in the second."""
    rows = []
    for step in range(3):
        for place, layer in enumerate(("layers.0.q_proj.weight", "layers.1.q_proj.weight")):
            for ratio, chance in CHANCE.items():
                own = above / (1 + place)
                index = chance + own * (1 - chance) if step else float("nan")
                known = chance if step else float("nan")
                both = {
                    f"{what}_{side}": value
                    for side in ("previous", "first")
                    for what, value in (("jaccard", index), ("chance", known))
                }
                row = {"step": step, "tensor": layer, "mask_ratio": ratio, "entries": 10}
                rows.append({**row, **both, "coverage": 0.5, **changed})
    frame = pd.DataFrame(rows)
    return frame.assign(column=frame["step"])


def time() -> RunTime:
    return RunTime.of(pd.Series([0, 1, 2]))


def test_overlap_is_what_lies_beyond_chance_of_what_can() -> None:
    found, known = above_chance(overlaps(0.6))
    assert known
    compared = found[found["step"] > 0]
    assert [*compared["overlap_previous"]] == pytest.approx([0.6, 0.6, 0.3, 0.3] * 2)
    assert [*compared["overlap_first"]] == pytest.approx([0.6, 0.6, 0.3, 0.3] * 2)


def test_masks_of_everything_overlap_by_chance_alone_and_say_nothing() -> None:
    full = overlaps(0.6).assign(jaccard_previous=1.0, chance_previous=1.0)
    found, _ = above_chance(full)
    assert found["overlap_previous"].isna().all()


def test_ratios_share_a_scale_that_begins_at_chance() -> None:
    figure = draw_overlap(overlaps(0.6), time())
    first, second = figure.axes
    for axis in (first, second):
        lines = {line.get_label(): [*line.get_ydata()] for line in axis.lines}
        assert lines["with the previous logged step"] == pytest.approx([0.45, 0.45])
        assert lines["chance"] == [0, 0]
    assert first.get_ylim() == second.get_ylim()
    assert "(J − chance) / (1 − chance)" in first.get_ylabel()
    assert first.get_title() == "mask ratio 0.2\n(chance: J = 0.67)"


def test_layers_of_all_ratios_share_one_color_scale_from_chance_on() -> None:
    figure = draw_overlap_by_layer(overlaps(0.6), time())
    *panels, bar = figure.axes
    meshes = [axis.collections[0] for axis in panels]
    assert len({mesh.get_clim() for mesh in meshes}) == 1
    assert meshes[0].get_clim()[0] == 0
    for mesh in meshes:
        shown = np.ma.filled(mesh.get_array(), np.nan)
        assert shown == pytest.approx(
            np.array([[np.nan, 0.6, 0.6], [np.nan, 0.3, 0.3]]), nan_ok=True
        )
    assert "(J − chance) / (1 − chance)" in bar.get_ylabel()
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["layers.0", "layers.1"]


def test_the_name_of_the_colors_is_no_longer_than_their_bar() -> None:
    figure = draw_overlap_by_layer(overlaps(0.6), time())
    figure.draw_without_rendering()
    *_, bar = figure.axes
    assert bar.yaxis.label.get_window_extent().height <= bar.get_window_extent().height * 1.1


def test_without_chance_the_index_itself_is_drawn_and_the_axis_says_so() -> None:
    masks = overlaps(0.6, chance_previous=float("nan"))
    figure = draw_overlap(masks, time())
    (line,) = [one for one in figure.axes[1].lines if "previous" in one.get_label()]
    assert [*line.get_ydata()] == pytest.approx([1 / 19 + 0.45 * 18 / 19] * 2)
    assert figure.axes[0].get_ylabel() == "overlap:\nJaccard index J"
    assert "does not say what chance is" in " ".join(figure.get_supxlabel().split())
    *_, bar = draw_overlap_by_layer(masks, time()).axes
    assert bar.get_ylabel() == "overlap:\nJaccard index J"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "run", updates=True)


def test_every_axis_of_every_picture_has_a_name(run: Path) -> None:
    drawings = draw_named("gradients", run)
    assert len(drawings) == 5
    for drawing in drawings:
        axes = [axis for axis in drawing.figure.axes if axis.get_visible()]
        bars = [axis for axis in axes if hasattr(axis, "_colorbar")]
        for axis in axes:
            named = [axis.get_xlabel(), axis.get_ylabel()]
            of_a_neighbor = not axis.yaxis.get_tick_params().get("labelleft", True)
            wanted = 1 if axis in bars or of_a_neighbor else 2
            assert sum(map(bool, named)) >= wanted, (drawing.name, axis.get_title())
    histograms = drawings[0].figure.axes[:5]
    assert {axis.get_xlabel() for axis in histograms} == {"optimizer step"}


def test_a_single_step_can_be_seen(tmp_path: Path) -> None:
    drawn = {
        drawing.name: drawing.figure
        for drawing in draw_named("gradients", train(tmp_path / "run", steps=1, updates=True))
    }
    median = drawn["gradient_histograms"].axes[0].lines[0]
    assert [*median.get_xdata()] == [-0.5, 0.5]
    for name in ("coverage", "updates"):
        assert {line.get_marker() for line in drawn[name].axes[0].lines} == {"o"}
