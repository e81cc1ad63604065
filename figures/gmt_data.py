"""Masked gradients against plain fine-tuning on less data, which GMT leaves open (2406.15330v1,
section 7). The paper has no such figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.catalog.methods import METHODS
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_ratios import DATA_RATIO_LABEL, draw_ratios
from deltalens.figures.mft_studies import LOOKS

__all__ = ["draw"]

_LOOKS = LOOKS | {name: one.on_base for name, one in METHODS.items() if one.on_base is not None}


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw data-ratio sweeps that start from a base: for each data set a panel for each metric.

    Args:
        folders: of the studies, such as one for each domain.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no data-ratio sweep is there, or no cell of it is finished.
    """
    return draw_ratios(
        folders, "data-ratio-sweep", entry.file_name, xlabel=DATA_RATIO_LABEL, looks=_LOOKS
    )
