"""What pictures show is what was measured: read back from matplotlib's own objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure

from deltalens.figures import draw_figure, draw_named
from deltalens.figures.landscape_panels import Scale, load_landscape, panels
from deltalens.io.papers import paper_table, paper_tables
from deltalens.io.records import Cell, Measurement, StudyFolder
from tests.reports import test_drop_summary as drops
from tests.support.mft_studies import COMPARED, write_study

Values = Mapping[tuple[float, float, str], float]
"""(a, b, mark) -> loss, or another metric."""


def write_landscape(
    folder: Path,
    plane: str,
    marks: list[dict[str, Any]],
    values: Values,
    labels: Sequence[str] = ("first", "second"),
    **more: Values,
) -> Path:
    axes = 1 if plane == "line" else 2
    facts = {
        "plane": {
            "labels": [*labels[:axes]],
            "marks": marks,
            "found": {},
            "ranges": [[-1.0, 3.0]] * axes,
            "terms": [],
        },
        "points": len(values),
        "data": ["t"],
    }
    spec = {"plane": plane, "grid": [5] * axes, "range": None}
    study = StudyFolder.open(folder, "landscape", spec, ("a", "b", "mark", "data"))
    study.facts |= facts
    study.write_manifest()
    for point in values:
        setting = dict(zip(("a", "b", "mark", "data"), (*point, "t"), strict=True))
        metrics = {"loss": values, **more}
        measured = {name: Measurement(of[point]) for name, of in metrics.items()}
        study.append(Cell(setting, measured, 0.1))
    study.close()
    return folder


def mark(name: str, role: str, a: float, b: float = 0.0) -> dict[str, Any]:
    return {"name": name, "role": role, "a": a, "b": b, "distance": 0.0}


def drawn(name: str, folder: Path) -> list[Figure]:
    """The figures that would be written."""
    return [drawing.figure for drawing in draw_named(name, folder)]


def test_curve_over_a_line_passes_through_every_marked_model(tmp_path: Path) -> None:
    marks = [mark("ft", "origin", 0.3), mark("other", "b", 1.5), mark("base", "base", 2.0)]
    grid = {(a, 0.0, "grid"): 2.0 for a in (-1.0, 0.0, 1.0, 2.0, 3.0)}
    at = {(0.3, 0.0, "ft"): 0.5, (1.5, 0.0, "other"): 0.25, (2.0, 0.0, "base"): 2.0}
    write_landscape(tmp_path, "line", marks, {**at, **grid})
    (axis,) = drawn("landscape", tmp_path)[0].axes
    curve = axis.lines[0]
    points = dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True))
    assert points == {**{a: v for (a, _, _), v in grid.items()}, 0.3: 0.5, 1.5: 0.25}
    assert [*points] == sorted(points)


@pytest.mark.parametrize(("best", "shown"), [(0.05, True), (0.049, False)])
def test_a_share_that_is_nowhere_on_a_plane_has_no_picture(
    best: float, shown: bool, tmp_path: Path
) -> None:
    grid = {(float(a), float(b), "grid"): 1.0 + a for a in range(4) for b in range(4)}
    match = {point: best * (point[0] == 1.0) for point in grid}
    origin = [mark("ft", "origin", 0.0)]
    write_landscape(tmp_path, "checkpoints", origin, grid, exact_match=match)
    names = [drawing.name for drawing in draw_named("landscape", tmp_path)]
    assert names == ["landscape", "landscape_3d", *["landscape_exact_match"] * shown]


def test_models_off_two_planes_share_an_entry_of_the_legend(tmp_path: Path) -> None:
    grid = {(float(a), float(b), "grid"): 1.0 + a for a in range(4) for b in range(4)}
    folders = []
    for far in (1.5, 2.5):
        marks = [mark("fine-tuned-on-instructions", "origin", 0.0), mark("more", "b", 2.0)]
        marks += [mark("masked", "c", 0.0, 2.0), mark("base", "base", 1.0, 1.0)]
        marks[-1]["distance"] = far
        folders.append(write_landscape(tmp_path / f"{far}", "checkpoints", marks, grid))
    (drawing,) = draw_named("mft-fig6", folders)
    (legend,) = drawing.figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said.count("base (projected, 1.5 and 2.5 off the planes)") == 1
    assert len(said) == 4


def test_model_without_a_finite_value_is_a_gap_in_the_curve(tmp_path: Path) -> None:
    marks = [mark("ft", "origin", 0.3), mark("other", "b", 1.5)]
    grid = {(a, 0.0, "grid"): 2.0 for a in (-1.0, 0.0, 1.0, 2.0, 3.0)}
    at = {(0.3, 0.0, "ft"): 0.5, (1.5, 0.0, "other"): math.nan}
    write_landscape(tmp_path, "line", marks, {**at, **grid})
    curve = drawn("landscape", tmp_path)[0].axes[0].lines[0]
    assert np.isnan(curve.get_ydata()[list(curve.get_xdata()).index(1.5)])


def heights() -> np.ndarray[Any, Any]:
    """Steep enough for a logarithmic scale, with a gap."""
    b, a = np.meshgrid(range(5), range(5), indexing="ij")
    tall = np.asarray(0.1 + a**2 + 3.0 * b)
    tall[4, 4] = math.nan
    return tall


def rounded(colors: Any) -> list[tuple[float, ...]]:
    return sorted(tuple(float(f"{part:.4f}") for part in color) for color in colors)


def surface(folder: Path, values: Values) -> Any:
    write_landscape(folder, "checkpoints", [mark("ft", "origin", 0.3)], values)
    (axis,) = drawn("landscape", folder)[-1].axes
    faces = axis.collections[0]
    faces.update_scalarmappable()
    return faces


def test_a_face_has_the_color_of_the_mean_of_its_corners(tmp_path: Path) -> None:
    tall = heights()
    values = {(a - 1.0, b - 1.0, "grid"): tall[b, a] for b in range(5) for a in range(5)}
    values[0.3, 0.0, "ft"] = 1.0
    faces = surface(tmp_path, values)
    # The scale is logarithmic: the mean is that of the heights that are drawn.
    drawn_heights = np.log10(tall)
    corners = [drawn_heights[b : b + 2, a : a + 2] for b in range(4) for a in range(4)]
    means = np.array([np.nanmean(four) for four in corners])
    np.testing.assert_allclose(faces.get_array(), means, rtol=1e-12)
    scale = Scale.of(panels(load_landscape(tmp_path), "loss"))
    low, high = np.log10((scale.levels[0], scale.levels[-1]))
    colors = colormaps["viridis"]((means - low) / (high - low))
    # Faces are drawn in the order of their distance.
    assert rounded(faces.get_facecolor()) == rounded(colors)


def test_unfinished_surface_has_the_colors_of_the_same_scale(tmp_path: Path) -> None:
    values = {(0.0, 0.0, "grid"): 1.0, (1.0, 0.0, "grid"): 2.0, (0.0, 1.0, "grid"): 3.0}
    faces = surface(tmp_path, {**values, (0.3, 0.0, "ft"): 1.0})
    scale = Scale.of(panels(load_landscape(tmp_path), "loss"))
    assert (faces.norm.vmin, faces.norm.vmax) == (scale.levels[0], scale.levels[-1])
    np.testing.assert_allclose(faces.get_array(), [2.0])


def test_unchanged_entries_are_a_shade_and_no_line_that_could_be_an_axis(tmp_path: Path) -> None:
    drops.write(tmp_path, drops.MATHS, drops.RATES, {})
    for axis in drawn("gmt-fig3", tmp_path)[0].axes:
        upright = [line for line in axis.lines if len({*line.get_xdata()}) == 1]
        assert upright == []
        (shade,) = [one for one in axis.patches if one.get_label() == "entries exactly unchanged"]
        box = shade.get_extents().transformed(axis.transData.inverted())
        assert (box.x0, box.x1) == pytest.approx((0, 0.25))


@pytest.mark.parametrize(
    ("name", "more"),
    [("mft-tab1", {}), ("mft-tab2", {}), ("mft-tab3", {"threshold": -0.035})],
)
def test_second_numbers_of_the_paper_are_called_distances_and_are_no_deviations(
    tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    draw_figure(name, write_study(tmp_path, "comparison", COMPARED, **more), paper=True)
    file = name.replace("-", "_")
    text = (tmp_path / f"{file}.md").read_text()
    ours, paper = text.split("**The paper", 1)
    assert "±" in ours
    heading, *rows = paper.split("\n- ", 1)[0].splitlines()
    assert "in brackets: the distance to FFT" in heading
    assert "±" not in "".join(rows)
    assert "(+" in "".join(rows)
    for line in (tmp_path / f"{file}.csv").read_text().splitlines()[1:]:
        if line.startswith("paper,"):
            *_, deviation, seeds, _, _ = line.split(",")
            assert (deviation, seeds) == ("", "")


def test_only_speft_prints_deviations() -> None:
    with_deviations = {
        name
        for name in paper_tables()
        if "±" in paper_table(name).cells[paper_table(name).measures].to_csv()
    }
    assert with_deviations == {"speft_tab1", "speft_tab9"}
