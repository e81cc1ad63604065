"""GMT's and SPEFT's Figure 2 from studies that measure GSM8K: strict and flexible scores, each on
an axis of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import deltalens
from deltalens.figures import draw_named
from tests.support.standard_tasks import gsm8k_rows, write_pair, write_rows

FILTERS = ("strict-match", "flexible-extract")
DOCUMENTS = 8


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, deltalens.Study]:
    """A sweep over mask ratios and one over densities, of a model that answers in GSM8K's form. It
    is trained to answer in a sentence, which only the flexible filter understands."""
    folder = tmp_path_factory.mktemp("gsm8k")
    ft = write_pair(folder, positions=1024).ft
    rows = gsm8k_rows(DOCUMENTS)
    answer = " so it is 7.\n\nQuestion:"
    told = [
        {"prompt": f"Question: {row['question']}\nAnswer:", "completion": answer} for row in rows
    ]
    options: dict[str, Any] = {
        "tasks": f"gsm8k={write_rows(folder / 'gsm8k.jsonl', rows)}",
        "num_fewshot": 0,
        "task_batch_size": DOCUMENTS,
        "seeds": 1,
        "steps": 12,
        "batch_size": DOCUMENTS,
    }
    train = write_rows(folder / "train.jsonl", told)
    return {
        "gmt-fig2": deltalens.sweep_mask_ratio(
            "gmt", ft, train, folder / "gmt", mask_ratios="0.5,0.99", learning_rate=0.003, **options
        ),
        "speft-fig2": deltalens.sweep_density(
            "speft,lora", ft, train, folder / "speft", ranks="1,4,32", learning_rate=0.01, **options
        ),
    }


def scores(study: deltalens.Study, method: str, filter_name: str) -> Any:
    cells = study.cells
    chosen = cells["metric"] == f"gsm8k/{filter_name}/exact_match"
    return cells[chosen & (cells["method"] == method)].sort_values(study.cells.columns[1])


def axes_of(figure: Any) -> dict[str, Any]:
    """The axes of each filter: its name is in their title or in their label."""
    return {
        name: axis
        for axis in figure.axes
        for name in FILTERS
        if name in f"{axis.get_title()} {axis.get_ylabel()}"
    }


@pytest.mark.parametrize(("name", "method"), [("gmt-fig2", "gmt"), ("speft-fig2", "lora")])
def test_strict_and_flexible_scores_have_axes_of_their_own_and_bands_of_standard_errors(
    studies: dict[str, deltalens.Study], name: str, method: str
) -> None:
    study = studies[name]
    (drawing,) = draw_named(name, study.path)
    axes = axes_of(drawing.figure)
    assert {*axes} == {*FILTERS}
    assert axes[FILTERS[0]] is not axes[FILTERS[1]]
    drawn = {}
    for filter_name, axis in axes.items():
        cells = scores(study, method, filter_name)
        drawn[filter_name] = 100 * cells["value"].to_numpy()
        assert (cells["stderr"].notna()).all()
        assert "exact match (%)" in axis.get_ylabel()
        lines = [line.get_ydata() for line in axis.lines]
        assert any(np.array_equal(line, drawn[filter_name]) for line in lines)
        bands = [{*np.round(shape.get_paths()[0].vertices[:, 1], 6)} for shape in axis.collections]
        error = 100 * cells["stderr"].to_numpy()
        edges = {*np.round(np.r_[drawn[filter_name] - error, drawn[filter_name] + error], 6)}
        assert edges in bands
    assert not np.array_equal(*drawn.values())


@pytest.mark.parametrize("name", ["gmt-fig2", "speft-fig2"])
def test_labels_lie_within_the_picture_and_apart(
    studies: dict[str, deltalens.Study], name: str
) -> None:
    (drawing,) = draw_named(name, studies[name].path)
    figure = drawing.figure
    figure.canvas.draw()
    whole = figure.bbox.padded(1)
    boxes = [
        text.get_window_extent()
        for axis in figure.axes
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label)
        if text.get_text()
    ]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for number, box in enumerate(boxes):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
        assert not any(box.overlaps(other) for other in boxes[:number])
