"""Long labels and names in pictures: nothing runs over its neighbour, and matplotlib finds room."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from deltalens.figures import draw_for
from deltalens.figures.style import fitted, text_width
from deltalens.io.records import Cell, Measurement, StudyFolder
from tests.figures.test_pictures import mark, write_landscape
from tests.support.evaluations import Scored, write_evaluation
from tests.support.gmt_studies import EXACT, write_sweep
from tests.support.mft_studies import RATIOS, write_study

LONG = "n" * 150
WIDE = "W" * 150
HOSTILE = "$x_{1}$\n\x1b\u202e" * 12


@contextmanager
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drop_study(folder: Path, metrics: Sequence[str], model: str = "tuned") -> Path:
    study = StudyFolder.open(
        folder, "drop-study", {"changed_only": False}, ("strategy", "scope", "rate", "seed")
    )
    study.facts = {"entries": 100, "unchanged": 0, "ft": model, "base": f"{model}-base"}
    study.write_manifest()
    for rate in (0.0, 0.5, 1.0):
        setting = {"strategy": "trivial", "scope": "tensor", "rate": rate, "seed": 0}
        measured = {metric: Measurement(0.5 + rate, 0.01, 9) for metric in metrics}
        study.append(Cell(setting, measured, 0.0))
    study.write_table([cell.setting for cell in study.cells])
    study.close()
    return folder


def check_room(figure: Figure) -> None:
    """Draw a figure without a warning; no panel, legend, title or caption lies over another."""
    with without_warnings():
        figure.canvas.draw()
    axes = [axis for axis in figure.axes if axis.get_visible()]
    around = [*figure.legends, *filter(None, (figure._suptitle, figure._supxlabel))]
    boxes = [artist.get_tightbbox(figure.canvas.get_renderer()) for artist in (*axes, *around)]  # type: ignore[attr-defined]
    for one, other in combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across < 1 or down < 1, (one, other)
    # A file is cut to what is drawn; what is far wider than a page makes all the rest small.
    assert all(box.width <= 1.02 * figure.bbox.width for box in boxes)


@pytest.mark.parametrize(
    "metrics",
    [
        ("kl",),
        ("kl", "top1_agreement"),
        ("kl", "loss", "top1_agreement"),
        tuple(f"{data}/{metric}" for data in "ab" for metric in ("kl", "loss")),
    ],
)
@pytest.mark.parametrize("size", [None, "6.8x2.9", "9"])
def test_a_long_label_runs_over_no_neighbour(
    tmp_path: Path, metrics: tuple[str, ...], size: str | None
) -> None:
    if size == "6.8x2.9" and len(metrics) > 3:
        size = "6.8x5.2"
    (drawing,) = draw_for("gmt-fig3", drop_study(tmp_path / "s", metrics), titles="on", size=size)
    check_room(drawing.figure)
    for axis in drawing.figure.axes:
        label = axis.yaxis.get_label().get_window_extent()
        assert label.height <= 1.3 * axis.get_window_extent().height


def _several_drops(folder: Path, name: str) -> list[Path]:
    parts = [folder / f"{letter}{name[:120]}" for letter in "ab"]
    return [drop_study(part, ("kl", "loss"), name) for part in parts]


def _evaluation(folder: Path, name: str) -> Path:
    models = [Scored(f"{at}{name}", {"loss": Measurement(1.0, 0.1, 9)}) for at in range(3)]
    return write_evaluation(folder / "s", models).path


def _landscape(folder: Path, plane: str, name: str) -> Path:
    roles = ("origin", "b", "c") if plane == "checkpoints" else ("origin", "b")
    marks = [
        mark(role + name, role, *at) for role, at in zip(roles, [(0,), (2,), (0, 2)], strict=False)
    ]
    grid = {(a, b, "grid"): 1 + a + b for a in range(4) for b in range(4 if len(marks) > 2 else 1)}
    labels = [f"distance from origin{name} towards b{name}", f"distance towards c{name}"]
    return write_landscape(folder, plane, marks, grid, labels=labels[: len(marks) - 1])


DRAWN: dict[str, Callable[[Path, str], Any]] = {
    "gmt-fig3": _several_drops,
    "gmt-fig2": lambda folder, name: write_sweep(
        folder / "s", EXACT, sets=(name, "b"), model=name, data=[name, 9, "d"]
    ),
    "mft-fig4": lambda folder, name: write_study(
        folder / "s", "mask-ratio-sweep", RATIOS, sets=(name,), trained_on=name
    ),
    "mft-fig8": lambda folder, name: write_study(
        folder / "s", "mask-ratio-sweep", RATIOS, sets=(name, "b"), trained_on=name
    ),
    "evaluation": _evaluation,
    "landscape": lambda folder, name: _landscape(folder / "s", "checkpoints", name),
    "landscape along a line": lambda folder, name: _landscape(folder / "s", "line", name),
}


@pytest.mark.parametrize("kind", [*DRAWN])
@pytest.mark.parametrize("name", [LONG, WIDE, HOSTILE], ids=["long", "wide", "hostile"])
def test_a_long_name_is_cut_to_what_has_room(tmp_path: Path, kind: str, name: str) -> None:
    for drawing in draw_for(kind.partition(" ")[0], DRAWN[kind](tmp_path, name), titles="on"):
        check_room(drawing.figure)
        with without_warnings():
            drawing.content("png")


@pytest.mark.parametrize("text", ["", "short", LONG, WIDE, "i" * 150])
def test_a_line_is_cut_in_the_middle_to_its_room(text: str) -> None:
    shown = fitted(text, 2.0, 9)
    assert text_width(shown, 9) <= 2.0 * 72
    if shown == text:
        return
    start, _, end = shown.partition("…")
    assert text.startswith(start)
    assert text.endswith(end)
    assert text_width(shown, 9) > 0.8 * 2.0 * 72
