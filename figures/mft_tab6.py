"""MFT, Table 6: methods across domains, beside LLaMA3.1-8B (2503.22764)."""

from __future__ import annotations

from pathlib import Path

from deltalens.figures.mft_across import draw_across

__all__ = ["draw"]


def draw(folder: str | Path, *more: str | Path) -> list[Path]:
    """Write every domain's models on every data set as a table, and the paper's rows below.

    Args:
        folder: of a comparison; `mft_tab6.csv`, `.md`, `.png` and `.svg` are written there.
        more: further ones, of other domains.

    Raises:
        RecordError: no comparison there, no finished cell, two of one domain, or other rows under
            the same name.
    """
    title = "MFT, Table 6: every domain's models on every data set"
    return draw_across([folder, *more], "mft_tab6", title)
