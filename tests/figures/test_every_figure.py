"""Every figure and table that has a name is drawn from small records, with what it must show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from deltalens.figures import FIGURES, Drawing, draw_named
from deltalens.io.papers import LOST, paper_table
from tests.figures.test_pictures import mark, write_landscape
from tests.reports import test_drop_summary as drops
from tests.support import gmt_studies, mft_studies, speft_studies
from tests.support.finished_studies import make_study
from tests.support.salience_studies import make_salience_study

Maker = Callable[[Path], Path]

GMT_METHODS = {**gmt_studies.EXACT, ("ft", 0.0, 0): 0.1}


def _sweep(path: Path) -> Path:
    return gmt_studies.write_sweep(path, GMT_METHODS, sets=("gsm8k_test", "math_test"))


def _mft(kind: str, values: mft_studies.Values, **more: object) -> Maker:
    def make(path: Path) -> Path:
        return mft_studies.write_study(path, kind, values, sets=("gsm8k",), **more)  # type: ignore[arg-type]

    return make


def _speft(kind: str, values: speft_studies.Values) -> Maker:
    return lambda path: speft_studies.write_study(path, kind, values)


def _drops(path: Path) -> Path:
    path.mkdir()
    drops.write(path, drops.MATHS, drops.RATES, {})
    return path


def _plane(path: Path) -> Path:
    marks = [mark("ft", "origin", 0.0), mark("more", "b", 2.0), mark("masked", "c", 0.0, 2.0)]
    points = {(float(a), float(b), "grid"): a * a + b for a in range(-1, 4) for b in range(-1, 4)}
    return write_landscape(path, "checkpoints", marks, points)


COMPARED = _mft("comparison", mft_studies.COMPARED, measured_at=(50,), steps=100)
SMALL = _mft("layer-sweep", mft_studies.layers(sizes=(1, 2, 4)))
RATIOS = _mft("mask-ratio-sweep", mft_studies.RATIOS)
SHARES = _mft("data-ratio-sweep", mft_studies.DATA_RATIOS)
SPEFT = _speft("comparison", speft_studies.METHODS)

FIGURES_DRAWN: dict[str, tuple[Maker, list[int]]] = {
    # Name -> its study, and the number of labeled lines on each axis.
    "gmt-fig2": (_sweep, [4, 4, 4, 4]),
    "gmt-fig3": (_drops, [5, 5]),
    "mft-fig2": (COMPARED, [7, 7]),
    "mft-fig3": (SMALL, [4, 4]),
    "mft-fig7": (SMALL, [3, 3]),
    **dict.fromkeys(("mft-fig4", "mft-fig8"), (RATIOS, [5, 5])),
    **dict.fromkeys(("mft-fig5", "mft-fig9"), (SHARES, [3, 3])),
    "gmt-data": (SHARES, [3, 3]),
    "speft-fig2": (_speft("density-sweep", speft_studies.DENSITIES), [5, 5]),
}
TABLES_DRAWN: dict[str, Maker] = {
    **dict.fromkeys(("gmt-tab1", "gmt-tab2", "gmt-tab4"), _sweep),
    "gmt-tab3": lambda path: gmt_studies.write_efficiency(path, {"sft": [1.0], "gmt": [0.9]}),
    **dict.fromkeys((f"mft-tab{number}" for number in (1, 2, 4, 5, 6)), COMPARED),
    "mft-tab3": _mft("comparison", mft_studies.COMPARED, threshold=-0.035),
    **dict.fromkeys((f"speft-tab{n}" for n in range(1, 13) if n != 4), SPEFT),
    "speft-tab4": _speft("mask-sweep", speft_studies.MASKS),
}
DIAGRAMS = ("gmt-fig1", "mft-fig1", "speft-fig1")
OTHERS: dict[str, Maker] = {
    **dict.fromkeys(
        ("salience-agreement", "salience-budget", "salience-samples"),
        lambda path: make_salience_study(path, "sample", "agreement", "fine-tune"),
    ),
    "anatomy": lambda path: make_study(path, "inspect"),
    "landscape": lambda path: make_study(path, "landscape"),
    **dict.fromkeys(("mft-fig6", "mft-fig10"), _plane),
}
ELSEWHERE = {"evaluation", "gradients", "removed-shares", "training"}
"""Drawn from a probe's run, and from a training: tests/cli/test_monitor.py, tests/training,
test_training_picture.py."""


def words(figure: Figure) -> str:
    """All that is written in a figure."""
    from matplotlib.text import Text

    return " ".join(
        one.get_text() for one in figure.findobj(Text) if isinstance(one, Text)
    ).replace("\n", " ")


def one(name: str, make: Maker, path: Path) -> Drawing:
    first, *_ = draw_named(name, make(path / "study"))
    return first


def test_none_is_left_out() -> None:
    drawn = {*FIGURES_DRAWN, *TABLES_DRAWN, *DIAGRAMS, *OTHERS}
    assert drawn | ELSEWHERE == {*FIGURES}


@pytest.mark.parametrize("name", FIGURES_DRAWN)
def test_a_figure_has_its_lines_labels_and_caption(tmp_path: Path, name: str) -> None:
    make, wanted = FIGURES_DRAWN[name]
    figure = one(name, make, tmp_path).figure
    shown = [axis for axis in figure.axes if axis.get_visible()]
    lines = [
        sum(not str(line.get_label()).startswith("_") for line in axis.lines) for axis in shown
    ]
    assert lines == wanted
    for axis in shown:
        assert axis.get_ylabel()
        assert "(" in axis.get_ylabel()  # a unit
    assert shown[0].get_xlabel()
    assert "Bands: " in words(figure)


@pytest.mark.parametrize("name", TABLES_DRAWN)
def test_a_table_has_a_study_the_paper_and_every_format(tmp_path: Path, name: str) -> None:
    drawing = one(name, TABLES_DRAWN[name], tmp_path)
    assert [*drawing.texts] == ["csv", "md", "tex"]
    title = FIGURES[name].title
    assert drawing.texts["md"].startswith(f"# {title}")
    assert title in drawing.texts["tex"]
    begun = drawing.texts["tex"].count(r"\toprule")
    assert begun == drawing.texts["tex"].count(r"\bottomrule") == len(drawing.tables)
    said = drawing.texts["md"]
    assert "The paper: " in said
    assert ("is lost" in said) == FIGURES[name].lost


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_method_is_drawn_from_nothing(name: str) -> None:
    (drawing,) = draw_named(name)
    assert {"gmt-fig1": "mean gradient", "mft-fig1": "mask, 1 or 0", "speft-fig1": "sparse"}[
        name
    ] in words(drawing.figure)


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_are_drawn(tmp_path: Path, name: str) -> None:
    drawing = one(name, OTHERS[name], tmp_path)
    assert [axis for axis in drawing.figure.axes if axis.get_visible()]


def test_what_is_lost_is_what_the_papers_data_lack() -> None:
    for name, entry in FIGURES.items():
        if entry.paper == "SPEFT" and entry.number.startswith("Table"):
            cells = paper_table(entry.file_name).cells
            assert entry.lost == any(LOST in set(cells[column]) for column in cells), name
