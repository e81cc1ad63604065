"""Where each salience metric puts its budget: its mask's density by block and kind of layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.salience_cells import labels_of, load_salience, metrics_of, numbers
from deltalens.figures.style import WIDTH, new_figure, styled

__all__ = ["draw"]

_REACH = 8.0
"""Times and parts of the mean density at which colors end."""
_COLUMNS = 3


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw a panel for each metric: blocks from top to bottom, kinds of layers from left to right.

    Args:
        folders: of the study.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no salience study is there, or none of its layers is in a block.
    """
    (folder,) = folders
    record = load_salience(folder)
    found = numbers(record, "budget", "density")
    places = [of.partition("/")[::2] for of in dict.fromkeys(of for _, of in found) if "/" in of]
    if not places:
        raise RecordError(f"{record.path}: no layer in a block is measured")
    blocks, kinds = (list(dict.fromkeys(names)) for names in zip(*places, strict=True))
    metrics = [name for name in metrics_of(record) if (name, "all") in found]
    rows = math.ceil(len(metrics) / _COLUMNS)
    with styled():
        height = rows * (0.9 + 0.17 * max(4, len(blocks))) + 0.5
        figure = new_figure(height, width=WIDTH, layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True)
        image: Any = None
        for axes, metric in zip(grid.flat, metrics, strict=False):
            mean = found[metric, "all"]
            values = [
                [found.get((metric, f"{block}/{kind}"), math.nan) / mean for kind in kinds]
                for block in blocks
            ]
            image = _panel(axes, values, labels_of([metric])[0])
        for axes in grid.flat[len(metrics) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            _name_blocks(axes, blocks)
        for axes in _lowest(grid, len(metrics)):
            axes.set_xticks(range(len(kinds)), _short(kinds), rotation=40, ha="right", fontsize=7)
            axes.tick_params(labelbottom=True)
        bar = figure.colorbar(image, ax=grid, shrink=0.6, extend="both")
        bar.set_label("density, in times the mask's mean")
        bar.minorticks_off()
        bar.set_ticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
        return [Drawing(entry.file_name, figure)]


def _panel(axes: Any, values: list[list[float]], title: str) -> Any:
    from matplotlib.colors import LogNorm

    # A layer without a kept weight has no logarithm: it is drawn as the lowest.
    shown = [[max(value, 1e-9) for value in line] for line in values]
    image = axes.imshow(shown, cmap="RdBu_r", norm=LogNorm(1 / _REACH, _REACH), aspect="auto")
    axes.grid(False)
    axes.set_title(title, fontsize=9)
    return image


def _lowest(grid: Any, panels: int) -> list[Any]:
    """The lowest panel of each column."""
    found = {}
    for index, axes in enumerate(grid.flat):
        if index < panels:
            found[index % _COLUMNS] = axes
    return list(found.values())


def _name_blocks(axes: Any, blocks: list[str]) -> None:
    names = [block.rpartition(".")[2] for block in blocks]
    step = max(1, len(names) // 8)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    axes.set_ylabel("block")


def _short(kinds: list[str]) -> list[str]:
    """The last part of each name, or the whole where that names two."""
    last = [kind.rpartition(".")[2] for kind in kinds]
    return [
        short if last.count(short) == 1 else kind for short, kind in zip(last, kinds, strict=True)
    ]
