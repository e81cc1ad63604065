"""The numbers of heatmaps and bars, read from a matplotlib figure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from deltalens.report_page.grids import grid_table


def test_a_heatmap_has_a_row_for_each_cell_in_the_words_of_its_axes() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.imshow([[1.0, 2.0], [3.0, math.nan]])
    axes.set_xticks([0, 1], ["q_proj", "k_proj"])
    axes.set_yticks([0, 1], ["block 0", "block 1"])
    table = grid_table(figure, "t")
    assert table is not None
    assert table.columns == ("x", "y", "value")
    assert table.rows == (
        ("q_proj", "block 0", "1"),
        ("k_proj", "block 0", "2"),
        ("q_proj", "block 1", "3"),
    )


def test_a_mesh_has_the_middles_of_its_cells() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.pcolormesh([0.0, 2.5, 5.0], [0.0, 10.5], np.array([[7.0, 8.0]]))
    table = grid_table(figure, "t")
    assert table is not None
    assert table.rows == (("1.25", "5.25", "7"), ("3.75", "5.25", "8"))


def test_bars_have_their_heights() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.bar(["SNIP", "Fisher"], [0.5, 0.25])
    axes.set_title("two halves")
    table = grid_table(figure, "t")
    assert table is not None
    assert table.rows == (("two halves", "SNIP", "0.5"), ("two halves", "Fisher", "0.25"))


def test_the_scale_of_colors_is_no_heatmap() -> None:
    figure = Figure()
    axes = figure.subplots()
    figure.colorbar(axes.imshow([[1.0, 2.0]]), ax=axes)
    table = grid_table(figure, "t")
    assert table is not None
    assert len(table.rows) == 2


@pytest.mark.parametrize("cells", [(0, 0), (100, 100)])
def test_none_or_too_many_have_no_table(cells: tuple[int, int]) -> None:
    figure = Figure()
    axes = figure.subplots()
    if cells[0]:
        axes.imshow(np.ones(cells))
    assert grid_table(figure, "t") is None
