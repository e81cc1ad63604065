"""How every figure looks: its size, its colors, and matplotlib's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "ORANGE",
    "PALETTE",
    "SETTINGS",
    "STRATEGY",
    "VERMILION",
    "WIDTH",
    "new_figure",
    "styled",
]

WIDTH = 6.8
"""Width of a figure in inches: the text width of a page."""

# Okabe and Ito's palette, which color-blind readers can tell apart; markers differ as well.
BLUE, ORANGE, VERMILION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
PALETTE = (BLUE, VERMILION, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#000000")
"""Colors of lines, in the order in which they are used."""
STRATEGY = {"trivial": (BLUE, "o"), "random": (ORANGE, "s"), "salient": (VERMILION, "^")}
"""Color and marker of each drop strategy."""

SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "text.usetex": False,
    "svg.hashsalt": "deltalens",
    "svg.fonttype": "none",
}
"""What `styled` sets."""


@contextmanager
def styled() -> Iterator[None]:
    """Apply deltalens' matplotlib settings for the duration of a `with` block.

    Yields:
        For as long as they apply.
    """
    import matplotlib as mpl

    with mpl.rc_context(SETTINGS):
        yield


def new_figure(height: float, *, width: float = WIDTH, **settings: Any) -> Figure:
    """Make an empty figure without pyplot, so that the caller's backend and open figures stay as
    they are.

    Args:
        height: in inches.
        width: in inches.
        settings: further arguments of `matplotlib.figure.Figure`, such as `layout`.

    Returns:
        The figure; it is rendered off screen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **settings)
    FigureCanvasAgg(figure)
    return figure
