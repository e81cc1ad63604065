"""MFT, Table 1: methods within their domain, beside LLaMA2-7B (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.mft_within import draw_within

__all__ = ["draw"]


def draw(folder: str | Path, *more: str | Path, mixed: Sequence[str | Path] = ()) -> list[Path]:
    """Write comparisons as a table, each domain's methods on the data of that domain, and the
    paper's rows below.

    Args:
        folder: of a comparison; `mft_tab1.csv`, `.md`, `.png` and `.svg` are written there.
        more: further ones, of other domains.
        mixed: those that start from a fine-tune on a mixture: the lower half of the paper's table.

    Raises:
        RecordError: no comparison there, no finished cell, or two of one domain.
    """
    title = "MFT, Table 1: methods on the data of their domain"
    return draw_within([folder, *more], mixed, "mft_tab1", title)
