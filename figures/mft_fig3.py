"""MFT, Figure 3: performance by the group of blocks that is masked; small groups (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_layers import draw_layers, group_sizes

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw layer sweeps over groups of less than half of the blocks (the paper: 4 and 8 of 32): for
    each data set a panel for each metric.

    Args:
        folders: of the studies, with or without training, such as one for each domain.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no layer sweep is there, no cell of it is finished, or it has no such groups.
    """
    small, _ = group_sizes(folders)
    return draw_layers(folders, small, entry.file_name)
