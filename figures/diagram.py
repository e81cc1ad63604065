"""Parts of a drawn diagram: matrices of shaded cells, boxes of words, arrows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.errors import Lines
from deltalens.figures.style import BLUE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SIDE", "Diagram", "Numbers", "example_values", "smallest"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Chosen = np.ndarray[Any, np.dtype[np.bool_]]

SIDE = 6
"""Rows and columns of a matrix."""
_CELL = 0.125


def example_values(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> Numbers:
    """Make numbers that look like those of a weight matrix.

    Args:
        seed: which ones.
        shape: rows and columns.

    Returns:
        Numbers around 0, as `shape` says.
    """
    return np.random.default_rng(seed).normal(size=shape)


class Diagram:
    """A canvas measured in inches, from its top left corner.

    Args:
        width, height: of the canvas.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure: Figure = new_figure(height, width=width, fixed=True)
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        self.axis.axis("off")

    def matrix(
        self,
        x: float,
        y: float,
        values: Numbers,
        below: str,
        *,
        color: str = BLUE,
        left_out: Chosen | None = None,
        frozen: bool = False,
    ) -> tuple[float, float, float]:
        """Draw a matrix whose cells are the darker, the larger their magnitudes.

        Args:
            x, y: of its top left corner.
            values: its numbers.
            below: what it is.
            color: of its largest cell.
            left_out: cells that are empty and crossed.
            frozen: hatch it: nothing in it changes.

        Returns:
            Its left edge, its right edge and the height of its middle.
        """
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Rectangle

        rows, columns = values.shape
        shades = 0.12 + 0.88 * np.abs(values) / np.abs(values).max()
        strong = np.asarray(to_rgb(color))
        for row in range(rows):
            for column in range(columns):
                left, top = x + column * _CELL, y + row * _CELL
                empty = left_out is not None and bool(left_out[row, column])
                shade = shades[row, column]
                face = "white" if empty else tuple(1 - shade * (1 - strong))
                style: dict[str, Any] = {"facecolor": face, "edgecolor": "0.45", "linewidth": 0.5}
                self.axis.add_patch(Rectangle((left, top), _CELL, _CELL, **style))
                if empty:
                    self.axis.plot(
                        [left, left + _CELL],
                        [top + _CELL, top],
                        color="0.75",
                        linewidth=0.6,
                        solid_capstyle="butt",
                    )
        wide, high = columns * _CELL, rows * _CELL
        edge: dict[str, Any] = {"facecolor": "none", "edgecolor": "0.2", "linewidth": 0.9}
        self.axis.add_patch(Rectangle((x, y), wide, high, **edge))
        if frozen:
            cover: dict[str, Any] = {
                "facecolor": "none",
                "edgecolor": "0.35",
                "hatch": "////",
            }
            self.axis.add_patch(Rectangle((x, y), wide, high, linewidth=0, **cover))
        self.words(x + wide / 2, y + high + 0.08, below)
        return x, x + wide, y + high / 2

    def words(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 7.5,
        above: bool = False,
        **style: Any,
    ) -> None:
        """Write text centered at a point.

        Args:
            x: of its middle.
            y: of its upper edge, or with `above` its lower one.
            text: to be written.
            size: in points.
            above: whether it stands above the point.
            style: further arguments of matplotlib's text.
        """
        side = {"va": "bottom" if above else "top", "ha": "center", "linespacing": 1.15}
        self.axis.text(x, y, text, fontsize=size, **{**side, **style})

    def box(self, x: float, y: float, width: float, height: float, text: str) -> None:
        """Draw words in a rounded box.

        Args:
            x, y: of its top left corner.
            width, height: of the box.
            text: in its middle.
        """
        from matplotlib.patches import FancyBboxPatch

        shape = "round,pad=0,rounding_size=0.06"
        look: dict[str, Any] = {
            "boxstyle": shape,
            "facecolor": "0.95",
            "edgecolor": "0.5",
            "linewidth": 0.8,
        }
        self.axis.add_patch(FancyBboxPatch((x, y), width, height, **look))
        middle: dict[str, Any] = {"va": "center", "ha": "center", "linespacing": 1.2}
        self.axis.text(x + width / 2, y + height / 2, text, fontsize=7.5, **middle)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], above: str = "") -> None:
        """Draw an arrow.

        Args:
            start, end: its ends.
            above: words over its middle.
        """
        look = {"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.0, "mutation_scale": 9}
        self.axis.annotate(
            "", xy=end, xytext=start, arrowprops={**look, "shrinkA": 0, "shrinkB": 0}
        )
        if above:
            middle = (start[0] + end[0]) / 2, min(start[1], end[1]) - 0.05
            self.words(*middle, above, size=7, above=True)

    def title(self, x: float, text: str, y: float = 0.08) -> None:
        """Write a heading.

        Args:
            x: of its left edge.
            text: of the heading.
            y: of its upper edge.
        """
        self.axis.text(x, y, text, fontsize=9, fontweight="bold", va="top", ha="left")

    def note(self, *lines: str) -> None:
        """Write what the diagram leaves out, at its lower edge.

        Args:
            lines: one under the other.
        """
        bottom = self.axis.get_ylim()[0] - 0.06
        look: dict[str, Any] = {"fontsize": 7, "color": "0.35", "va": "bottom", "ha": "left"}
        self.axis.text(0.08, bottom, Lines(*lines), **look)


def smallest(values: Numbers, share: float) -> Chosen:
    """Choose the cells of the smallest magnitude.

    Args:
        values: of a matrix.
        share: of its cells.

    Returns:
        Whether each cell is one of them.
    """
    order = np.abs(values).ravel().argsort(kind="stable")
    chosen = np.zeros(values.size, dtype=bool)
    chosen[order[: round(share * values.size)]] = True
    return chosen.reshape(values.shape)
