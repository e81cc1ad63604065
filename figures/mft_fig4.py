"""MFT, Figures 4 and 8: performance over the mask ratio (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_ratios import draw_ratios

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw mask-ratio sweeps of methods that remove weights: for each data set a panel for each
    metric. The paper's Figure 4 is on coding and instructions, its Figure 8 on maths.

    Args:
        folders: of the studies, such as one for each domain.
        entry: Figure 4 or 8.

    Returns:
        The figure.

    Raises:
        RecordError: no mask-ratio sweep is there, or no cell of it is finished.
    """
    return draw_ratios(
        folders,
        "mask-ratio-sweep",
        entry.file_name,
        xlabel="mask ratio (fraction of weights removed)",
        note="Ratio 0 is the fine-tune itself.",
    )
