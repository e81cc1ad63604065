"""A table as LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltalens.io.escaping import plain_latex

if TYPE_CHECKING:
    from deltalens.figures.tables import Block, Entry, TableFigure

__all__ = ["as_latex"]


def as_latex(table: TableFigure) -> str:
    """Write a table as floats of LaTeX, one for each block so that it fits on a page: a `tabular`
    below its caption, and the notes below the last one. They need booktabs, and graphicx to shrink
    what is wider than the page.

    Args:
        table: with all its blocks.

    Returns:
        The source; every name in it is escaped.
    """
    lines = [r"% \usepackage{booktabs,graphicx}"]
    label = table.name.replace("_", "-")
    for number, block in enumerate(table.blocks, start=1):
        caption = f"{table.title}. {block.title}"
        if table.subject and block.source != "paper":
            caption += f" ({table.subject})"
        lines += [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{plain_latex(caption)}}}",
            rf"\label{{tab:{label}{f'-{number}' if number > 1 else ''}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *_tabular(block),
            "}",
        ]
        if number == len(table.blocks) and table.notes:
            lines += [r"\par\medskip\begin{minipage}{\linewidth}\footnotesize"]
            lines += [rf"{plain_latex(note)}\par" for note in table.notes]
            lines += [r"\end{minipage}"]
        lines.append(r"\end{table*}")
    return "\n".join(lines) + "\n"


def _tabular(block: Block) -> Iterator[str]:
    sides = "l" * block.labels + "r" * (len(block.heads) - block.labels)
    yield rf"\begin{{tabular}}{{{sides}}}"
    yield r"\toprule"
    yield _row(_head(head) for head in block.heads)
    yield r"\midrule"
    before: tuple[Entry, ...] = ()
    for row in block.rows:
        group = [entry.text for entry in row[: block.grouped]]
        if before and group != [entry.text for entry in before[: block.grouped]]:
            yield r"\addlinespace"
        yield _row(map(_cell, row))
        before = row
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _row(cells: Iterator[str]) -> str:
    return _guarded(" & ".join(cells)) + r" \\"


def _guarded(text: str) -> str:
    """A line after another one: a bracket or star would be an argument of the line break."""
    return "{}" + text if text.startswith(("[", "*")) else text


def _cell(entry: Entry) -> str:
    text = plain_latex(entry.text)
    return rf"\textbf{{{text}}}" if entry.best else text


def _head(head: str) -> str:
    lines = [_guarded(plain_latex(line)) for line in head.split("\n")]
    if len(lines) == 1:
        return lines[0]
    stacked = r" \\ ".join(lines)
    return rf"\shortstack{{{stacked}}}"
