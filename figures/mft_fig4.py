"""MFT, Figure 4: performance over the mask ratio, coding and instructions (2503.22764)."""

from __future__ import annotations

from pathlib import Path

from deltalens.figures.mft_ratios import draw_mask_ratios

__all__ = ["draw"]


def draw(folder: str | Path, *more: str | Path) -> list[Path]:
    """Draw mask-ratio sweeps, each data set a panel for each metric.

    Figure 8 (maths) is drawn alike: which domain stands in which figure is for the
    caller to say.

    Args:
        folder: of a study; `mft_fig4.png` and `.svg` are written there.
        more: further ones, of other domains.

    Raises:
        RecordError: no such study, or no finished cell in it.
    """
    return draw_mask_ratios([folder, *more], "mft_fig4")
