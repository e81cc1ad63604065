"""How every figure looks, and how it is saved."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.io.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["METHOD", "STRATEGY", "WIDTH", "save", "styled"]

WIDTH = 6.8
"""Inches: the text width of a page."""

# Okabe and Ito's palette, told apart by colour-blind readers; markers differ as well.
STRATEGY = {
    "trivial": ("#0072B2", "o"),
    "random": ("#E69F00", "s"),
    "salient": ("#D55E00", "^"),
}

METHOD = {
    "sft": ("0.35", ""),
    "dpo": ("0.35", ""),
    "gmt": ("#0072B2", "o"),
    "random-mask": ("#E69F00", "s"),
    "hft": ("#009E73", "D"),
    "one-off-drop": ("#CC79A7", "^"),
}

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "svg.hashsalt": "deltalens",
    "svg.fonttype": "none",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the house style, off screen; the caller's settings come back afterwards."""
    import matplotlib as mpl

    with mpl.rc_context(_RC):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, each whole or not at all; the same figure, the same bytes."""
    import matplotlib.pyplot as plt

    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata, bbox_inches="tight")
        written.append(folder / f"{name}.{kind}")
        write_whole(written[-1], content.getvalue())
    plt.close(figure)
    return written
