"""The pictures of a salience study show what its records say."""

from pathlib import Path

import numpy as np
import pytest

from deltalens.errors import RecordError
from deltalens.figures import draw
from deltalens.figures.registry import draw_named
from tests.support.finished_studies import make_study
from tests.support.salience_studies import make_salience_study

PARTS = ("sample", "agreement", "fine-tune")


def test_each_metric_has_a_panel_of_its_densities(tmp_path: Path) -> None:
    (drawing,) = draw_named("salience-budget", make_salience_study(tmp_path / "s"))
    panels = {axes.get_title(): axes for axes in drawing.figure.axes if axes.get_title()}
    assert [*panels] == ["gradient", "SNIP", "random"]
    # Blocks from top to bottom, layers from left to right, in times the mean of 0.01.
    shown = np.asarray(panels["gradient"].images[0].get_array())
    assert np.allclose(shown, [[0, 3], [0, 1]])
    assert np.allclose(np.asarray(panels["SNIP"].images[0].get_array()), 1)


def test_the_matrix_has_both_triangles_and_the_fine_tune(tmp_path: Path) -> None:
    (drawing,) = draw_named("salience-agreement", make_salience_study(tmp_path / "s", *PARTS))
    shown = np.asarray(drawing.figure.axes[0].images[0].get_array())
    assert np.allclose(shown, [[1, 0.25, 0, 0.2], [0.25, 1, 0.01, 0.1], [0, 0.01, 1, 0.005]])
    said = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert said == ["0.25", "0", "0.20", "0.25", "0.01", "0.10", "0", "0.01", "0.005"]


def test_parts_of_the_data_lie_over_their_examples(tmp_path: Path) -> None:
    (drawing,) = draw_named("salience-samples", make_salience_study(tmp_path / "s", *PARTS))
    lines = {line.get_label(): line for line in drawing.figure.axes[0].lines}
    assert [lines["gradient"].get_xdata()[0], lines["gradient"].get_ydata()[0]] == [4, 0.5]
    assert [bar.get_height() for bar in drawing.figure.axes[1].patches] == [0.95, 0.3]


@pytest.mark.parametrize("parts", [(), ("agreement",), ("fine-tune",), ("sample",), PARTS])
def test_what_is_measured_is_drawn(parts: tuple[str, ...], tmp_path: Path) -> None:
    names = {path.stem for path in draw(make_salience_study(tmp_path / "s", *parts))}
    assert names == {
        "salience_budget",
        *(["salience_agreement"] if {*parts} & {"agreement", "fine-tune"} else []),
        *(["salience_samples"] if "sample" in parts else []),
    }


@pytest.mark.parametrize("name", ["salience-budget", "salience-agreement", "salience-samples"])
def test_another_study_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no salience with finished cells"):
        draw_named(name, make_study(tmp_path / "s", "inspect"))
