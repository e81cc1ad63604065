"""MFT, Figure 3: performance by the group of blocks that is masked; small groups (2503.22764)."""

from __future__ import annotations

from pathlib import Path

from deltalens.figures.mft_layers import draw_layers, group_sizes

__all__ = ["draw"]


def draw(folder: str | Path, *more: str | Path) -> list[Path]:
    """Draw sweeps over groups of less than half of the blocks (the paper: 4 and 8 of 32), each
    data set a panel for each metric. Studies of several domains come together in one figure.

    Args:
        folder: of a study with or without training; `mft_fig3.png` and `.svg` are written there.
        more: further ones, of other domains.

    Raises:
        RecordError: no such study, no finished cell, or no such groups in it.
    """
    return draw_layers([folder, *more], group_sizes(folder, *more)[0], "mft_fig3")
