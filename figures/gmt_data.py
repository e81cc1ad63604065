"""Masked gradients against plain fine-tuning on less data: what GMT's limitations leave open
(2406.15330v1, section 7). The paper has no such figure."""

from __future__ import annotations

from pathlib import Path

from deltalens.catalog.methods import METHODS
from deltalens.figures.mft_ratios import draw_data_ratios
from deltalens.figures.mft_studies import LOOKS

__all__ = ["draw"]

_LOOKS = LOOKS | {name: one.on_base for name, one in METHODS.items() if one.on_base is not None}


def draw(folder: str | Path, *more: str | Path) -> list[Path]:
    """Draw data-ratio sweeps of a base, each data set a panel for each metric.

    Args:
        folder: of a study; `gmt_data.png` and `.svg` are written there.
        more: further ones, of other domains.

    Raises:
        RecordError: no such study, or no finished cell in it.
    """
    return draw_data_ratios([folder, *more], "gmt_data", _LOOKS)
