"""Lines on each other: the lower ones show, and the caption names them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from deltalens.figures.coinciding import coinciding_note, layered


def panel(title: str = "maths", label: str = "exact match (%)") -> Any:
    axis = Figure().subplots()
    axis.set_title(title)
    axis.set_ylabel(label)
    axis.set_ylim(0, 100)
    return axis


def test_lines_with_equal_numbers_are_named_with_their_panel() -> None:
    first, second = panel(), panel("code", "loss (nats per target token)")
    for axis in (first, second):
        axis.plot([0, 1], [10, 20], label="GMT")
        axis.plot([0, 1], [10, 20.1], label="random mask")
        axis.plot([0, 1], [10, 30], label="SFT")
    assert coinciding_note([first]) == "On the same line: GMT and random mask."
    both = coinciding_note([first, second])
    assert both == "On the same line: GMT and random mask (maths, exact match; code, loss)."


def test_many_panels_are_counted_instead_of_named() -> None:
    panels = [panel(name) for name in ("maths", "code", "general", "chat")]
    for axis in panels[1:]:
        axis.plot([0, 1], [10, 20], label="GMT")
        axis.plot([0, 1], [10, 20], label="SFT")
    assert coinciding_note(panels) == "On the same line: GMT and SFT (in 3 of 4 panels)."


def test_a_level_coincides_with_a_line_that_is_level_and_with_no_other() -> None:
    axis = panel()
    axis.axhline(10, label="SFT")
    axis.plot([0, 1], [10, 10], label="flat")
    axis.plot([0, 1], [10, 20], label="GMT")
    axis.axhline(50, label="base")
    assert coinciding_note([axis]) == "On the same line: SFT and flat."


@pytest.mark.parametrize(
    "lines",
    [
        {"a": ([0, 1], [1, 2])},
        {"a": ([0, 1], [10, 20]), "b": ([0, 1], [20, 10])},
        {"a": ([0, 1], [10, 20]), "b": ([2, 3], [10, 20])},
        {"a": ([0, 1], [10, 20]), "b": ([1, 2], [20, 30])},
        {"a": ([0, 1], [10, 20]), "_hidden": ([0, 1], [10, 20])},
        {"a": ([], []), "b": ([], [])},
    ],
)
def test_lines_that_can_be_told_apart_are_not_named(lines: dict[str, Any]) -> None:
    axis = panel()
    for name, (xs, ys) in lines.items():
        axis.plot(xs, ys, label=name)
    assert coinciding_note([axis]) == ""


def test_two_points_in_one_place_are_named() -> None:
    axis = panel()
    axis.plot([3], [10], "o", label="a")
    axis.plot([3], [10], "s", label="b")
    axis.plot([3], [50], "^", label="c")
    assert coinciding_note([axis]) == "On the same line: a and b."


def test_gaps_and_hidden_panels_are_passed_over() -> None:
    axis, hidden = panel(), panel()
    for each in (axis, hidden):
        each.plot([0, 1, 2], [10, np.nan, 20], label="a")
        each.plot([0, 1, 2], [10, 15, 20], label="b")
    hidden.set_visible(False)
    assert coinciding_note([axis, hidden]) == "On the same line: a and b."


def test_on_a_logarithmic_axis_small_numbers_are_told_apart() -> None:
    axis = panel()
    axis.plot([0, 1], [1e-4, 1e-4], label="a")
    axis.plot([0, 1], [1e-3, 1e-3], label="b")
    axis.set_ylim(1e-5, 100)
    assert "a and b" in coinciding_note([axis])
    axis.set_yscale("log")
    assert coinciding_note([axis]) == ""


def test_of_lines_that_coincide_the_lower_ones_are_wider_and_solid_ones_lie_below() -> None:
    axis = panel()
    for style in ("-", "--", "-", "--"):
        axis.plot([0, 1], [1, 2], marker="o", label=style, linestyle=style, **layered(axis, style))
    order = sorted(axis.lines, key=lambda line: float(line.get_zorder()))
    assert [line.get_linestyle() for line in order] == ["-", "-", "--", "--"]
    for looks in ([line.get_linewidth() for line in order], [o.get_markersize() for o in order]):
        assert looks == sorted(looks, reverse=True)
        assert len({*looks}) == 4
