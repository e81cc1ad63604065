"""How every figure looks: its size, its colors, caption and legend, and matplotlib's settings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from deltalens.errors import DeltaLensError, Lines
from deltalens.io.escaping import plain_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "LEGEND_ABOVE",
    "MEDIA",
    "ORANGE",
    "PALETTE",
    "SETTINGS",
    "STRATEGY",
    "TITLES",
    "VERMILION",
    "WIDTH",
    "Manner",
    "Medium",
    "Size",
    "Titles",
    "add_caption",
    "add_legend",
    "columns_for",
    "drawn_for",
    "drawn_now",
    "elided",
    "fitted",
    "new_figure",
    "read_size",
    "stacked",
    "styled",
    "text_width",
]

Medium = Literal["paper", "slides"]
"""What a figure is drawn for."""
MEDIA: tuple[Medium, ...] = get_args(Medium)
Titles = Literal["auto", "on", "off"]
"""Whether a figure has a title; `auto`: on a slide, and beside a study's records."""
TITLES: tuple[Titles, ...] = get_args(Titles)
LEGEND_ABOVE = "legend above the panels"
"""The `gid` of matplotlib's legend that `add_legend` draws."""
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


class Size(NamedTuple):
    """Of a picture, in inches."""

    width: float
    height: float | None = None
    """None: as the figure needs."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """For whom figures are drawn, and how."""

    medium: Medium = "paper"
    titles: bool = False
    """Whether a figure says on top whose numbers it shows; a paper's caption says it instead."""
    paper_rows: bool = True
    """Whether tables have the paper's own rows below a study's, and those of other models than the
    study's beside it."""
    subject: str = ""
    """Models and data whose numbers a figure shows, by their names."""
    dpi: int | None = None
    """Dots per inch of a PNG; None: as the medium has it."""
    size: Size | None = None

    @property
    def width(self) -> float:
        """Width of a figure over a whole page or slide, in inches."""
        return self.size.width if self.size else WIDTH * _CANVASES[self.medium].width


_MANNER: ContextVar[Manner] = ContextVar("manner")
_USUAL = Manner()
_LETTERS = 130.0
"""Characters in an inch of type of one point; of nine points it has 14."""
_SHORT = 4
"""Characters of a unit that needs no line of its own."""
_WORD = 40
"""Characters of a word in a caption, beyond which it is somebody's name, and is cut."""
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


def drawn_now() -> Manner:
    """How figures are drawn at the moment.

    Returns:
        What the innermost `drawn_for` says.
    """
    return _MANNER.get(_USUAL)


@contextmanager
def drawn_for(**changes: Any) -> Iterator[None]:
    """Draw for somebody else for the duration of a `with` block.

    Args:
        changes: fields of `Manner`. On `slides` type is a third larger in relation to the picture.

    Yields:
        For as long as it applies.

    Raises:
        DeltaLensError: there is no such medium, or the dots per inch are out of bounds.
    """
    manner = replace(drawn_now(), **changes)
    if manner.medium not in MEDIA:
        raise DeltaLensError(f"medium {manner.medium!r}: choose from {', '.join(MEDIA)}")
    if manner.dpi is not None and not 20 <= manner.dpi <= 2400:
        raise DeltaLensError(f"dpi {manner.dpi}: from 20 to 2400")
    token = _MANNER.set(manner)
    try:
        yield
    finally:
        _MANNER.reset(token)


def read_size(text: str) -> Size:
    """Read a picture's size as it is typed.

    Args:
        text: `3.3` or `3.3x2.5`: width, or width and height, in inches.

    Returns:
        The size.

    Raises:
        DeltaLensError: it is none, or out of bounds.

    Example:
        >>> read_size("3.3x2.5")
        Size(width=3.3, height=2.5)
    """
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)(?:x(\d{1,3}(?:\.\d{1,6})?))?", text.strip())
    parts = [float(part) for part in found.groups() if part] if found else []
    if not parts or not all(1 <= part <= 40 for part in parts):
        raise DeltaLensError(
            f"size {text!r}: WIDTH or WIDTHxHEIGHT in inches, from 1 to 40, such as 3.3x2.5"
        )
    return Size(*parts)


def new_figure(
    height: float, *, width: float = WIDTH, fixed: bool = False, **settings: Any
) -> Figure:
    """Make an empty figure without pyplot, so that the caller's backend and open figures stay as
    they are.

    Args:
        height: in inches.
        width: in inches on paper; a slide takes less.
        fixed: it is just as large as its words need, whatever it is drawn for.
        settings: further arguments of `matplotlib.figure.Figure`, such as `layout`.

    Returns:
        The figure; it is rendered off screen.

    Raises:
        DeltaLensError: a size is given, and it is fixed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    manner = drawn_now()
    if fixed and manner.size:
        raise DeltaLensError("size: a table or diagram is as large as its words need; leave it out")
    size = width if fixed else width / WIDTH * manner.width, height
    if manner.size and manner.size.height is not None:
        size = size[0], manner.size.height
    dots = manner.dpi or _CANVASES[manner.medium].dots
    figure = Figure(figsize=size, dpi=dots, **settings)
    FigureCanvasAgg(figure)
    return figure


def columns_for(panels: int) -> int:
    """Choose how many panels stand side by side.

    Args:
        panels: how many there are.

    Returns:
        At most three on paper, two on a slide, and one in a column of a page.
    """
    width = drawn_now().width
    if width < 0.6 * WIDTH:
        return 1
    return min(panels, 2) if width < 0.85 * WIDTH or panels in (2, 4) else min(3, panels)


def elided(text: str, longest: int) -> str:
    """Leave out the middle of a text that is too long: names differ at their ends.

    Args:
        text: a name, or several.
        longest: how many characters there is room for.

    Returns:
        At most so many characters, but at least three.

    Example:
        >>> elided("a-very-long-name-7B", 9)
        'a-ve…e-7B'
    """
    half = max(1, (longest - 1) // 2)
    return text if len(text) <= max(3, longest) else f"{text[:half]}…{text[-half:]}"


@cache
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Measure a line of text.

    Args:
        text: the line.
        size: of the type, in points.
        weight: of the type.

    Returns:
        Its width in points.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(size=size, weight=weight)
    return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0])


def fitted(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Leave out the middle of a line that has no room.

    Args:
        text: the line.
        inches: the room.
        size: of the type, in points.
        weight: of the type.

    Returns:
        The line, or its beginning and its end.
    """
    longest = len(text) if len(text) < 1000 else 1000
    shown = elided(text, longest)
    while longest > 3 and (width := text_width(shown, size, weight)) > 72 * inches:
        longest = min(longest - 1, int(longest * 72 * inches / width))
        shown = elided(text, longest)
    return shown


def stacked(label: str, inches: float, size: float = 9.0) -> str:
    """Break the label of an axis that is longer than the axis.

    Args:
        label: in words, with its unit in brackets at the end.
        inches: the length of the axis.
        size: of the type, in points.

    Returns:
        The label in as many lines as it needs; the unit begins one.
    """
    room = max(8, int(_LETTERS * inches / size))
    if len(label) <= room:
        return label
    name, _, unit = label.partition(" (")
    parts = [name, f"({unit}"] if len(unit) > _SHORT else [label]
    return Lines(*(line for part in parts for line in textwrap.wrap(part, room)))


def add_caption(figure: Figure, sentences: Sequence[str]) -> None:
    """Write under a figure what its lines, bands and marks are.

    Args:
        figure: laid out by matplotlib (`layout="constrained"`).
        sentences: empty ones are left out.
    """
    text = " ".join(sentence for sentence in sentences if sentence)
    text = " ".join(elided(word, _WORD) for word in plain_lines(text).split(" "))
    # Small type is rendered wider than its outlines, which is what is measured.
    across, wide = int(_CAPTION * figure.get_figwidth()), 0.93 * 72 * figure.get_figwidth()
    lines = textwrap.wrap(text, across)
    while across > _WORD and any(text_width(line, 7) > wide for line in lines):
        across = int(0.9 * across)
        lines = textwrap.wrap(text, across)
    figure.supxlabel(Lines(*lines), fontsize=7, color="0.35")


def add_legend(figure: Figure, handles: Mapping[str, Any], **style: Any) -> None:
    """Draw one legend above all panels, in as many columns as have room.

    Args:
        figure: laid out by matplotlib.
        handles: label -> artist; without any, there is no legend. Of a label that has no room the
            middle is left out.
        style: further arguments of matplotlib's legend.
    """
    if not handles:
        return
    room = int(_LEGEND * figure.get_figwidth())
    labels = [fitted(plain_lines(label), figure.get_figwidth() - 0.8, 9) for label in handles]
    across = max(1, room // (max(map(len, labels)) + 8))
    lines = -(-len(handles) // across)
    legend = figure.legend(
        handles.values(),
        labels,
        ncols=-(-len(handles) // lines),
        **{"loc": "outside upper center", "handlelength": 2.4, **style},
    )
    legend.set_gid(LEGEND_ABOVE)
