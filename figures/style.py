"""How every figure looks: its size, its colors, caption and legend, and matplotlib's settings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from deltalens.errors import DeltaLensError, Lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "MEDIA",
    "ORANGE",
    "PALETTE",
    "SETTINGS",
    "STRATEGY",
    "VERMILION",
    "WIDTH",
    "Medium",
    "add_caption",
    "add_legend",
    "columns_for",
    "drawn_for",
    "new_figure",
    "styled",
]

Medium = Literal["paper", "slides"]
"""What a figure is drawn for."""
MEDIA: tuple[Medium, ...] = get_args(Medium)
WIDTH = 6.8
"""Width of a figure in inches: the text width of a page."""

# Okabe and Ito's palette, which color-blind readers can tell apart; markers differ as well.
BLUE, ORANGE, VERMILION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
PALETTE = (BLUE, VERMILION, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#000000")
"""Colors of lines, in the order in which they are used."""
STRATEGY = {
    "trivial": (BLUE, "o", "-"),
    "random": (ORANGE, "s", (0, (4, 1.5))),
    "salient": (VERMILION, "^", "-."),
}
"""Color, marker and line of each drop strategy."""

SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.usetex": False,
    # Whole TrueType fonts in a PDF. In an SVG text stays text: it can be searched and edited.
    "pdf.fonttype": 42,
    "svg.hashsalt": "deltalens",
    "svg.fonttype": "none",
}
"""What `styled` sets."""


class _Canvas(NamedTuple):
    """What a medium makes of a figure's size."""

    width: float
    """Share of a page's width. The type keeps its size, so on a narrower canvas it is larger once
    the picture fills its place."""
    dots: int
    """Dots per inch of a PNG."""


_CANVASES: Mapping[Medium, _Canvas] = {"paper": _Canvas(1.0, 150), "slides": _Canvas(0.76, 300)}
_MEDIUM: ContextVar[Medium] = ContextVar("medium", default="paper")
_CAPTION, _LEGEND = 19.4, 16.2
"""Characters of a caption, and of a legend, in an inch."""


@contextmanager
def styled() -> Iterator[None]:
    """Apply deltalens' matplotlib settings for the duration of a `with` block.

    Yields:
        For as long as they apply.
    """
    import matplotlib as mpl

    with mpl.rc_context(SETTINGS):
        yield


@contextmanager
def drawn_for(medium: Medium) -> Iterator[None]:
    """Draw for another medium for the duration of a `with` block.

    Args:
        medium: `paper`, or `slides`, whose type is a third larger in relation to the picture.

    Yields:
        For as long as it applies.

    Raises:
        DeltaLensError: there is no such medium.
    """
    if medium not in MEDIA:
        raise DeltaLensError(f"medium {medium!r}: choose from {', '.join(MEDIA)}")
    token = _MEDIUM.set(medium)
    try:
        yield
    finally:
        _MEDIUM.reset(token)


def new_figure(height: float, *, width: float = WIDTH, **settings: Any) -> Figure:
    """Make an empty figure without pyplot, so that the caller's backend and open figures stay as
    they are.

    Args:
        height: in inches.
        width: in inches on paper; a slide takes less.
        settings: further arguments of `matplotlib.figure.Figure`, such as `layout`.

    Returns:
        The figure; it is rendered off screen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = _CANVASES[_MEDIUM.get()]
    figure = Figure(figsize=(width * canvas.width, height), dpi=canvas.dots, **settings)
    FigureCanvasAgg(figure)
    return figure


def columns_for(panels: int) -> int:
    """Choose how many panels stand side by side.

    Args:
        panels: how many there are.

    Returns:
        At most three on paper, and two on a slide.
    """
    return 2 if _MEDIUM.get() == "slides" or panels in (2, 4) else min(3, panels)


def add_caption(figure: Figure, sentences: Sequence[str]) -> None:
    """Write under a figure what its lines, bands and marks are.

    Args:
        figure: laid out by matplotlib (`layout="constrained"`).
        sentences: empty ones are left out.
    """
    text = " ".join(sentence for sentence in sentences if sentence)
    lines = textwrap.wrap(text, int(_CAPTION * figure.get_figwidth()))
    figure.supxlabel(Lines(*lines), fontsize=7, color="0.35")


def add_legend(figure: Figure, handles: Mapping[str, Any], **style: Any) -> None:
    """Draw one legend above all panels, in as many columns as have room.

    Args:
        figure: laid out by matplotlib.
        handles: label -> artist; without any, there is no legend.
        style: further arguments of matplotlib's legend.
    """
    if not handles:
        return
    across = max(1, int(_LEGEND * figure.get_figwidth()) // (max(map(len, handles)) + 8))
    lines = -(-len(handles) // across)
    figure.legend(
        handles.values(),
        handles.keys(),
        ncols=-(-len(handles) // lines),
        **{"loc": "outside upper center", "handlelength": 2.4, **style},
    )
