"""The heatmaps of a delta have each tensor's numbers in its layer's row and projection's column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from deltalens.figures import draw_named
from deltalens.io.records import Cell, Measurement, StudyFolder

EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def inspection(folder: Path, norms: Mapping[str, float], entries: int = 10) -> Figure:
    """The picture of an inspection in which each tensor has this relative norm."""
    study = StudyFolder.open(folder, "inspect", {"ft": "a", "base": "b"}, ("level", "name"))
    layers = dict.fromkeys(
        name if "layers" not in name else ".".join(name.split(".")[:3]) for name in norms
    )
    study.facts = {"per_octave": 4, "histograms": {one: [[-40, 4], [-36, 6]] for one in layers}}
    study.facts |= {"notes": []}
    study.write_manifest()
    for name in layers:
        found = {"unchanged": Measurement(0.0, n=entries)}
        study.append(Cell({"level": "layer", "name": name}, found, 0.0))
    for place, (name, norm) in enumerate(norms.items()):
        found = {
            "relative_norm": Measurement(norm, n=entries * (1 + place)),
            "energy_top_0.1": Measurement(0.5, n=entries * (1 + place)),
        }
        study.append(Cell({"level": "tensor", "name": name}, found, 0.0))
    study.close()
    (drawing,) = draw_named("anatomy", folder)
    return drawing.figure


def block(number: int, **norms: float) -> dict[str, float]:
    return {f"model.layers.{number}.{name.replace('__', '.')}": x for name, x in norms.items()}


def cells(figure: Figure, place: int = 0) -> Any:
    """The numbers of a heatmap, as they are drawn."""
    (mesh,) = figure.axes[place].collections
    return mesh.get_array()


def names(figure: Figure) -> tuple[list[str], list[str]]:
    axis = figure.axes[0]
    return (
        [label.get_text() for label in axis.get_yticklabels()],
        [label.get_text() for label in axis.get_xticklabels()],
    )


WHOLE = {
    HEAD: 0.7,
    NORM: 0.02,
    **block(1, self_attn__q_proj__weight=0.03, mlp__up_proj__weight=0.04),
    **block(0, mlp__up_proj__weight=0.02, self_attn__q_proj__weight=0.01),
    **block(0, input_layernorm__weight=9.0),
    EMBED: 0.5,
}


def test_each_tensor_is_in_its_layers_row_and_its_projections_column(tmp_path: Path) -> None:
    figure = inspection(tmp_path, WHOLE)
    rows, columns = names(figure)
    assert rows == ["embed_tokens", "layers.0", "layers.1", "norm", "lm_head"]
    assert columns == ["q_proj", "up_proj", "input_layernorm"]
    shown = cells(figure)
    assert np.ma.filled(shown, np.nan) == pytest.approx(
        np.array([[50, 50, 50], [1, 2, 900], [3, 4, np.nan], [2, 2, 2], [70, 70, 70]]),
        nan_ok=True,
    )
    assert cells(figure, 1)[1, 0] == pytest.approx(50)


def test_the_colors_span_the_projections_and_not_a_norm_that_is_far_from_them(
    tmp_path: Path,
) -> None:
    (mesh,) = inspection(tmp_path, WHOLE).axes[0].collections
    assert 1 <= mesh.norm.vmin < mesh.norm.vmax <= 4


def test_every_color_bar_and_axis_says_what_it_is_and_in_which_unit(tmp_path: Path) -> None:
    figure = inspection(tmp_path, WHOLE)
    labels = [axis.get_xlabel().replace("\n", " ") for axis in figure.axes]
    assert labels[3:] == [
        "‖δ‖ / ‖base‖ (%)",
        "‖δ‖² in the largest tenth of entries (%)",
        "entries per octave (%)",
    ]
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        *("size", "concentration", "distribution")
    ]
    assert labels[2] == "log₂ |δ|"


def test_the_distribution_is_a_share_of_the_layers_entries_per_octave(tmp_path: Path) -> None:
    shown = cells(inspection(tmp_path, WHOLE), 2)
    # 4 and 6 of 10 entries, each in a quarter of an octave; 4 empty quarters between.
    assert shown.shape == (5, 5)
    assert np.ma.filled(shown[1], 0.0) == pytest.approx(np.array([160, 0, 0, 0, 240]))


def test_experts_of_a_layer_share_a_cell_with_the_mean_over_their_entries(tmp_path: Path) -> None:
    norms = block(0, mlp__experts__0__up_proj__weight=0.01, mlp__experts__1__up_proj__weight=0.04)
    figure = inspection(tmp_path, norms | block(0, self_attn__q_proj__bias=0.05))
    assert names(figure)[1] == ["q_proj.bias", "up_proj"]
    # The second has twice as many entries.
    assert [*cells(figure)[0]] == pytest.approx([5, (1 + 2 * 4) / 3])


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_without_a_number_to_show_a_cell_is_empty(tmp_path: Path, value: float) -> None:
    figure = inspection(tmp_path, block(0, a__q_proj__weight=value, a__k_proj__weight=0.01))
    assert names(figure)[1] == ["q_proj", "k_proj"]
    figure.canvas.draw()


def test_many_layers_have_as_many_names_as_fit(tmp_path: Path) -> None:
    norms = {name: 0.1 for number in range(80) for name in block(number, a__q_proj__weight=0.0)}
    figure = inspection(tmp_path, norms)
    labels = names(figure)[0]
    assert labels[:2] == ["layers.0", "layers.3"]
    assert 10 < len(labels) <= 40
    assert figure.get_figheight() < 9
