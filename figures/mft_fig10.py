"""MFT, Figure 10: Figure 6 for the coding domain (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.mft_fig6 import draw_domains

__all__ = ["draw"]


def draw(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Draw the landscape of the coding domain; see `mft_fig6.draw`.

    Raises:
        RecordError: no landscape there, or no finished point in it.
    """
    return draw_domains(folders, out, "mft_fig10")
