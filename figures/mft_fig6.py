"""MFT, Figure 6: the loss surface around a fine-tune, its continued fine-tune and its masked child,
on training and test data, a domain a row: maths and instructions (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.figures.landscape import draw_contours
from deltalens.figures.landscape_panels import load_landscape, panels

__all__ = ["NAMES", "draw", "draw_domains"]

NAMES = {"origin": "FFT", "b": "continued FFT", "c": "MFT"}
"""What the paper calls the three."""


def draw(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Draw the landscapes of one or several domains.

    Args:
        folders: of the studies, a domain each: scanned with --plane checkpoints from the fine-tune,
            its continued fine-tune and the masked model, on training and test data in this order.
        out: the folder where `mft_fig6.png` and `.svg` are written.

    Raises:
        RecordError: no landscape in one of them, or no finished point in it.
    """
    return draw_domains(folders, out, "mft_fig6")


def draw_domains(folders: Sequence[str | Path], out: str | Path, name: str) -> list[Path]:
    """A row of panels for each domain, under the paper's names and markers."""
    import matplotlib as mpl

    mpl.use("agg")
    rows = []
    for folder in folders:
        record = load_landscape(folder)
        kinds = ("training data", "test data")
        rows.append(
            [
                replace(panel, title=f"{kinds[min(place, 1)]} ({panel.title})")
                for place, panel in enumerate(panels(record, "loss"))
            ]
        )
    return draw_contours(rows, Path(out), name, NAMES)
