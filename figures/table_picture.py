"""A table as a picture: three rules, text on the left, numbers on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from deltalens.errors import Lines
from deltalens.figures.drawing import shown_title
from deltalens.figures.style import WIDTH, new_figure, styled, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deltalens.figures.tables import Block, Entry, TableFigure

__all__ = ["draw_blocks"]

# Sizes and distances in points.
_SIZE, _TITLE, _SMALL = 9.0, 10.5, 7.5
_LINE, _SMALL_LINE = 14.5, 10.5
_BETWEEN, _WIDEST, _INSET = 14.0, 72.0, 3.0
_HINTED = 0.97
"""Small text is rendered wider than its outlines, which is what is measured."""


def draw_blocks(table: TableFigure) -> Figure:
    """Draw a table at the width of a page, or as wide as its words need.

    Args:
        table: with all its blocks.

    Returns:
        The figure.
    """
    natural = [_widths(block) for block in table.blocks]
    needed = [sum(widths) + _BETWEEN * (len(widths) - 1) + 2 * _INSET for widths in natural]
    width = max(72 * WIDTH, *needed)
    with styled():
        pen = _Pen(width)
        if table.subject:
            pen.paragraph(
                shown_title(table.subject, width / 72, _TITLE), _TITLE, 15.0, weight="bold"
            )
        pen.paragraph(table.title, _TITLE, 14.0, weight="bold")
        for block, widths in zip(table.blocks, natural, strict=True):
            pen.block(block, widths)
        pen.down += 3.0
        for note in table.notes:
            pen.down += 2.5
            pen.paragraph(note, _SMALL, _SMALL_LINE, color="0.3")
        figure = new_figure(pen.down / 72, width=width / 72, fixed=True)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, width), ylim=(pen.down, 0))
        axis.axis("off")
        pen.draw(axis)
        return figure


@dataclass
class _Pen:
    """Moves down a page of a known width and collects what to draw; how tall the page must be is
    known only at the end."""

    width: float
    down: float = 0.0

    def __post_init__(self) -> None:
        self._texts: list[tuple[float, float, str, dict[str, Any]]] = []
        self._rules: list[tuple[float, float, float, str]] = []
        self._right = self.width

    def draw(self, axis: Any) -> None:
        for x, y, text, style in self._texts:
            axis.text(x, y, text, va="baseline", parse_math=False, **style)
        for x, y, thickness, color in self._rules:
            axis.plot([0, x], [y, y], color=color, linewidth=thickness, clip_on=False)

    def paragraph(self, text: str, size: float, line: float, **style: Any) -> None:
        width = _HINTED * (self.width - 2 * _INSET)
        for words in _wrapped(text, width, size, style.get("weight", "normal")):
            self.down += line
            self._texts.append((_INSET, self.down - 0.3 * line, words, {"size": size, **style}))

    def block(self, block: Block, widths: list[float]) -> None:
        self.down += 8.0
        self.paragraph(block.title, _SIZE, 13.0, weight="bold", color="0.3")
        spare = self.width - sum(widths) - 2 * _INSET
        gap = min(_WIDEST, spare / max(1, len(widths) - 1))
        self._right = sum(widths) + gap * (len(widths) - 1) + 2 * _INSET
        self._rule(4.0, 1.0)
        rights, x = [], _INSET
        for column in widths:
            rights.append(x + column)
            x += column + gap
        heads = [_head_lines(head) for head in block.heads]
        deepest = max(map(len, heads))
        for line in range(deepest):
            self.down += 11.5 if line else 13.0
            for column, lines in enumerate(heads):
                own_line = line - deepest + len(lines)
                if own_line >= 0:
                    self._put(block, column, rights[column], widths[column], lines[own_line])
        self._rule(4.5, 0.6)
        before: tuple[Entry, ...] = ()
        for row in block.rows:
            same = _agreeing(before[: block.grouped], row)
            if before and same < block.grouped:
                self._rule(4.5, 0.4, "0.7")
            self.down += _LINE
            for column, entry in enumerate(row):
                if column >= same:
                    weight = "bold" if entry.best else "normal"
                    self._put(block, column, rights[column], widths[column], entry.text, weight)
            before = row
        self._rule(4.5, 1.0)

    def _rule(self, below: float, thickness: float, color: str = "black") -> None:
        self.down += below
        self._rules.append((self._right, self.down, thickness, color))

    def _put(
        self, block: Block, column: int, right: float, width: float, text: str, weight: str = ""
    ) -> None:
        left = column < block.labels
        x, side = (right - width, "left") if left else (right, "right")
        style = {"size": _SIZE, "ha": side, "weight": weight or "normal"}
        self._texts.append((x, self.down, text, style))


def _widths(block: Block) -> list[float]:
    widths = [max(text_width(line, _SIZE) for line in _head_lines(head)) for head in block.heads]
    for row in block.rows:
        for column, entry in enumerate(row):
            weight = "bold" if entry.best else "normal"
            widths[column] = max(widths[column], text_width(entry.text, _SIZE, weight))
    return widths


def _agreeing(before: Sequence[Entry], row: Sequence[Entry]) -> int:
    """The number of leading columns in which two rows agree."""
    pairs = zip(before, row, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _head_lines(head: str) -> list[str]:
    """The lines of a head; a long remark in brackets at its end gets a line of its own."""
    name, _, remark = head.partition(" (")
    if isinstance(head, Lines) and "\n" in head:
        return head.split("\n")
    return [head] if len(remark) < 4 else [name, f"({remark}"]


def _wrapped(text: str, width: float, size: float, weight: str) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size, weight) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
