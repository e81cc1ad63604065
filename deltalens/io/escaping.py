"""Escaping of names that come from files: one function for each medium in which they are shown.

Tensors, files and rows can have any name, and other libraries' errors quote them. A name could
contain a terminal's escape sequences, a spreadsheet's formula, markup, math that matplotlib
renders, or characters that reverse a line's direction.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from deltalens.errors import Lines

__all__ = [
    "plain",
    "plain_cell",
    "plain_label",
    "plain_latex",
    "plain_lines",
    "plain_markdown",
    "short_path",
]

_HARMLESS = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u02ff\u0370-\u05ff\u2013-\u2027\u2190-\u22ff]*")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n")
"""What a spreadsheet formula begins with; the second four are the full-width forms of the first."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)")
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters, marks and symbols without a visible glyph; all other invisible characters are in Unicode
category C or Z."""
_MARKDOWN = str.maketrans(
    {
        "\\": "\\\\",
        "|": "\\|",
        "`": "\\`",
        "[": "\\[",
        "]": "\\]",
        "<": "&lt;",
        ">": "&gt;",
        "&": "&amp;",
    }
)
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "–": "--",
        "−": r"$-$",
        "→": r"$\rightarrow$",
        "√": r"$\surd$",
        "‖": r"$\Vert$",
        "α": r"$\alpha$",
        "ρ": r"$\rho$",
        "δ": r"$\delta$",
    }
)


def plain(text: object) -> str:
    """Make text safe to print on one line of a terminal.

    Args:
        text: any object; its `str` is used.

    Returns:
        The text, with control characters (escape sequences, line ends), invisible characters,
        characters that change the direction, and lone surrogates written as Python escapes
        (`\\x1b`, `\\u202e`).

    Example:
        >>> from deltalens.io.escaping import plain
        >>> plain("a\\x1b]52;c;Zm9v\\x07\\u202eb")
        'a\\\\x1b]52;c;Zm9v\\\\x07\\\\u202eb'
    """
    text = str(text)
    if _HARMLESS.fullmatch(text):
        return text
    return "".join(char if _is_visible(char) else _escape(char) for char in text)


def short_path(path: Path, longest: int = 160) -> str:
    """Shorten a path for a `repr`.

    Args:
        path: the path.
        longest: how many of its last characters to keep.

    Returns:
        The end of the path, as `plain` returns it.
    """
    text = plain(path)
    return text if len(text) <= longest else f"...{text[-longest:]}"


def plain_lines(text: object) -> str:
    """Make a message safe to print on a terminal.

    Args:
        text: a message, or an exception with one. Only a message built as `Lines` has several
            lines: in any other, a line end came from a name, and is escaped.

    Returns:
        The message, each of its lines as `plain` returns it.
    """
    text = str(text)
    lines = text.split("\n") if isinstance(text, Lines) else [text]
    return "\n".join(map(plain, lines))


def plain_cell(value: object) -> object:
    """Make a value safe for a cell of a CSV file.

    Args:
        value: a number, a text or None.

    Returns:
        Numbers as they are, an empty text for None, and text as `plain` returns it, with an
        apostrophe in front of what a spreadsheet would evaluate as a formula.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    formula = value.startswith(_FORMULA) and _NUMBER.fullmatch(value) is None
    return f"'{plain(value)}" if formula else plain(value)


def plain_label(text: str) -> str:
    """Make text safe for a label in a figure.

    Returns:
        The text as `plain_lines` returns it, with dollar signs escaped, so that matplotlib renders
        no math.
    """
    return plain_lines(text).replace("$", r"\$")


def plain_markdown(text: str) -> str:
    """Make text safe for a Markdown file, also within a table's cell.

    Returns:
        The text on one line, with the characters escaped that delimit cells, tags, links or code.
    """
    return plain(text).translate(_MARKDOWN)


def plain_latex(text: str) -> str:
    """Make text safe for a LaTeX file.

    Returns:
        The text on one line, with the characters escaped that LaTeX obeys, and the signs that a
        deltalens table has (±, –, α, ...) as commands that every LaTeX knows.

    Example:
        >>> from deltalens.io.escaping import plain_latex
        >>> plain_latex("50 % of a_b ± 1")
        '50 \\\\% of a\\\\_b $\\\\pm$ 1'
    """
    return plain(text).translate(_LATEX)


def _is_visible(char: str) -> bool:
    if _INVISIBLE.match(char):
        return False
    # Cc: control, Cf: format, Cs: surrogate, Co and Cn: without a glyph, Zl and Zp: separators.
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escape(char: str) -> str:
    return ascii(char)[1:-1]
