"""How far the masks of salience metrics agree, pair by pair, and with a fine-tune's changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.salience_cells import labels_of, load_salience, metrics_of, numbers
from deltalens.figures.style import new_figure, styled

__all__ = ["draw"]

_CHANGES = "largest changes"


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw a matrix of Jaccard indices.

    Args:
        folders: of the study.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no salience study is there, or it has no two masks to compare.
    """
    (folder,) = folders
    record = load_salience(folder)
    found = numbers(record, "agreement", "jaccard")
    found |= {
        (one, _CHANGES): value
        for (one, _), value in numbers(record, "fine-tune", "jaccard").items()
    }
    if not found:
        raise RecordError(f"{record.path}: nothing is compared yet")
    chance = max([*numbers(record, "agreement", "chance").values(), 0.0])
    rows = metrics_of(record)
    columns = [*rows, *([_CHANGES] if any(of == _CHANGES for _, of in found) else [])]
    values = [
        [
            1.0 if one == of else found.get((one, of), found.get((of, one), math.nan))
            for of in columns
        ]
        for one in rows
    ]
    with styled():
        figure = new_figure(
            0.9 + 0.36 * len(rows), width=2.2 + 0.5 * len(columns), layout="constrained"
        )
        axes = figure.subplots()
        _matrix(axes, values)
        heads = [*labels_of(rows), *(["fine-tune"] if len(columns) > len(rows) else [])]
        axes.set_xticks(range(len(columns)), heads, rotation=40, ha="right")
        axes.set_yticks(range(len(rows)), labels_of(rows))
        axes.set_title(f"Jaccard index of masks (by chance {chance:.2g})", fontsize=9)
        if len(columns) > len(rows):
            axes.axvline(len(rows) - 0.5, color="black", linewidth=1)
        return [Drawing(entry.file_name, figure)]


def _matrix(axes: Any, values: list[list[float]]) -> None:
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if row != column and math.isfinite(value):
                color = "white" if value > 0.6 else "black"
                text = f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
