"""MFT, Figure 7: performance by the group of blocks that is masked; large groups (2503.22764)."""

from __future__ import annotations

from pathlib import Path

from deltalens.figures.mft_layers import draw_layers, group_sizes

__all__ = ["draw"]


def draw(folder: str | Path, *more: str | Path) -> list[Path]:
    """Draw sweeps over groups of half of the blocks or more (the paper: 16 of 32), else as
    Figure 3.

    Args:
        folder: of a study with or without training; `mft_fig7.png` and `.svg` are written there.
        more: further ones, of other domains.

    Raises:
        RecordError: no such study, no finished cell, or no such groups in it.
    """
    return draw_layers([folder, *more], group_sizes(folder, *more)[1], "mft_fig7")
