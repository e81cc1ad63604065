"""SPEFT's Figure 2, read back from matplotlib's own objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltalens.figures import draw_named
from tests.support.speft_studies import DENSITIES, Values, write_study


def axes_of(path: Path, values: Values = DENSITIES, **more: Any) -> list[Any]:
    folder = write_study(path, "density-sweep", values, **more)
    (drawing,) = draw_named("speft-fig2", folder)
    assert drawing.name == "speft_fig2"
    return list(drawing.figure.axes)


def lines_of(axis: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axis.lines}


def test_a_line_goes_through_the_means_over_the_percent_of_parameters(tmp_path: Path) -> None:
    axes = axes_of(tmp_path)
    assert [axis.get_ylabel() for axis in axes] == [
        *("exact match (%)", "loss (nats per target token)")
    ]
    lines = lines_of(axes[0])
    assert list(lines) == ["before training", "SFT", "LoRA", "PiSSA", "SPEFT"]
    np.testing.assert_allclose(lines["SPEFT"].get_xdata(), [0.06, 0.24, 0.97, 1.92])
    np.testing.assert_allclose(lines["SPEFT"].get_ydata(), [53, 59, 64, 71])
    np.testing.assert_allclose(lines["LoRA"].get_ydata(), [51, 53, 53, 54])


def test_budgets_that_double_are_equally_far_apart_and_named_in_percent(tmp_path: Path) -> None:
    axis, *_ = axes_of(tmp_path)
    assert axis.get_xscale() == "log"
    assert axis.get_xlabel() == "trained share of the model (%)"
    axis.figure.canvas.draw()
    low, high = axis.get_xlim()
    shown = [label.get_text() for label in axis.get_xticklabels() if low <= label._x <= high]
    assert shown == ["0.1", "0.2", "0.5", "1", "2"]


def test_a_model_as_it_is_and_full_tuning_are_levels(tmp_path: Path) -> None:
    axis, *_ = axes_of(tmp_path)
    lines = lines_of(axis)
    for name, level in (("before training", 30), ("SFT", 90)):
        assert {*lines[name].get_ydata()} == {level}
        assert lines[name].get_linestyle() == "--"


def test_lora_pissa_and_speft_are_told_apart(tmp_path: Path) -> None:
    axis, *_ = axes_of(tmp_path)
    own = [lines_of(axis)[name] for name in ("LoRA", "PiSSA", "SPEFT")]
    assert len({line.get_color() for line in own}) == 3
    assert len({line.get_marker() for line in own}) == 3


def test_variants_have_lines_and_colors_of_their_own(tmp_path: Path) -> None:
    values = {
        (f"{method}:metric={metric}" if method == "speft" else method, *rest): value
        for metric in ("gradient", "snip")
        for (method, *rest), value in DENSITIES.items()
    }
    axis, *_ = axes_of(tmp_path, values)
    lines = lines_of(axis)
    assert [*lines][-2:] == ["SPEFT: Gradient", "SPEFT: SNIP"]
    assert lines["SPEFT: Gradient"].get_color() != lines["SPEFT: SNIP"].get_color()


def test_every_data_set_has_its_panels(tmp_path: Path) -> None:
    axes = axes_of(tmp_path, sets=["maths_test", "code_test"])
    assert [axis.get_title() for axis in axes] == [*["maths_test"] * 2, *["code_test"] * 2]
    np.testing.assert_allclose(lines_of(axes[2])["SPEFT"].get_ydata(), [43, 49, 54, 61])


@pytest.mark.parametrize("methods", [("ft",), ("ft", "sft")])
def test_a_study_without_a_line_yet_is_drawn(tmp_path: Path, methods: tuple[str, ...]) -> None:
    values = {key: value for key, value in DENSITIES.items() if key[0] in methods}
    axis, *_ = axes_of(tmp_path, values)
    assert len(lines_of(axis)) == len(methods)
