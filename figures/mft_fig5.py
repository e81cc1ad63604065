"""MFT, Figures 5 and 9: performance over the share of the data (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_ratios import DATA_RATIO_LABEL, draw_ratios

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw data-ratio sweeps: for each data set a panel for each metric. The paper's Figure 5 is on
    maths and instructions, its Figure 9 on coding.

    Args:
        folders: of the studies, such as one for each domain.
        entry: Figure 5 or 9.

    Returns:
        The figure.

    Raises:
        RecordError: no data-ratio sweep is there, or no cell of it is finished.
    """
    return draw_ratios(folders, "data-ratio-sweep", entry.file_name, xlabel=DATA_RATIO_LABEL)
