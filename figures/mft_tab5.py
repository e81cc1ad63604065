"""MFT, Table 5: methods across domains, beside LLaMA2-7B (2503.22764)."""

from __future__ import annotations

from pathlib import Path

from deltalens.figures.mft_across import draw_across

__all__ = ["draw"]


def draw(folder: str | Path, *more: str | Path) -> list[Path]:
    """Write every domain's models on every data set as a table, and the paper's rows below.

    Args:
        folder: of a comparison; `mft_tab5.csv`, `.md`, `.png` and `.svg` are written there.
        more: further ones, of other domains.

    Raises:
        RecordError: no comparison there, no finished cell, two of one domain, or other rows under
            the same name.
    """
    title = "MFT, Table 5: every domain's models on every data set"
    return draw_across([folder, *more], "mft_tab5", title)
