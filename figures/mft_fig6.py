"""MFT, Figures 6 and 10: the loss around a fine-tune, its continued fine-tune and its masked child,
on training and test data, a row for each domain (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.landscape import draw_contours
from deltalens.figures.landscape_panels import load_landscape, panels

__all__ = ["NAMES", "draw"]

NAMES = {"origin": "FFT", "b": "continued FFT", "c": "MFT"}
"""The paper's names of the three models, by their role in the plane."""


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the landscapes of one or several domains under the paper's names and markers. The
    paper's Figure 6 is on maths and instructions, its Figure 10 on coding.

    Args:
        folders: of the studies, one for each domain: the plane through the fine-tune, its continued
            fine-tune and the masked model, on training and test data, in this order.
        entry: Figure 6 or 10.

    Returns:
        The figure.

    Raises:
        RecordError: no landscape is there, none of its points is finished, or it is one along a
            line.
    """
    rows = []
    for folder in folders:
        shown = panels(load_landscape(folder), "loss")
        if not shown or len(shown[0].labels) != 2:
            raise RecordError(
                f"{folder}: not the loss on a plane; {entry.name} needs a landscape through three "
                "models"
            )
        kinds = ("training data", "test data")
        rows.append(
            [
                replace(panel, title=f"{kinds[min(column, 1)]} ({panel.title})")
                for column, panel in enumerate(shown)
            ]
        )
    return [draw_contours(rows, entry.file_name, NAMES)]
