"""How every figure looks, and how it is saved."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.io.escaping import plain_label
from deltalens.io.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STRATEGY", "WIDTH", "save", "styled"]

WIDTH = 6.8
"""Inches: the text width of a page."""

# Okabe and Ito's palette, told apart by color-blind readers; markers differ as well.
STRATEGY = {
    "trivial": ("#0072B2", "o"),
    "random": ("#E69F00", "s"),
    "salient": ("#D55E00", "^"),
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
    "text.usetex": False,
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

    _make_plain(figure)
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata, bbox_inches="tight")
        written.append(folder / f"{name}.{kind}")
        write_whole(written[-1], content.getvalue())
    plt.close(figure)
    return written


def _make_plain(figure: Figure) -> None:
    """Every text but the numbers at the axes, which matplotlib writes itself."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    ticks = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                ticks |= {id(tick.label1), id(tick.label2)}
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                formatter.seq = [plain_label(label) for label in formatter.seq]
            elif isinstance(formatter, FuncFormatter):
                formatter.func = functools.partial(_plain_tick, formatter.func)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in ticks:
            label = plain_label(text.get_text())
            text.set_text(label if text.get_parse_math() else label.replace(r"\$", "$"))


def _plain_tick(label: Callable[[float, int | None], str], value: float, place: int | None) -> str:
    return plain_label(label(value, place))
