"""Names that come from files, made harmless where they are shown: one function for each kind of
place. A tensor, a file, a row or another library can be called anything: a terminal's commands, a
spreadsheet's formula, markup, a formula of a picture, or characters that turn a line round."""

from __future__ import annotations

import re
import unicodedata

from deltalens.errors import Lines

__all__ = ["plain", "plain_cell", "plain_label", "plain_lines", "plain_markdown"]

_HARMLESS = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u02ff\u0370-\u05ff\u2013-\u2027\u2190-\u22ff]*")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n")
"""What a formula begins with: the second four are the same as wide as a Chinese character."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)")
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters, marks and signs that nothing is seen of; all else that is unseen is of category C."""
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


def plain(text: object) -> str:
    """Text on one line of a terminal: control characters (escape sequences, line ends), invisible
    ones, those that change the direction, and halves of surrogate pairs are written as Python's
    escapes (`\\x1b`, `\\u202e`).

    Example:
        >>> plain("a\\x1b]52;c;Zm9v\\x07\\u202eb")
        'a\\\\x1b]52;c;Zm9v\\\\x07\\\\u202eb'
    """
    text = str(text)
    if _HARMLESS.fullmatch(text):
        return text
    return "".join(one if _is_shown(one) else _escaped(one) for one in text)


def plain_lines(text: object) -> str:
    """A message of one line as `plain`; of several, made as `Lines`, each line so. A line end in
    any other text came with a name, and is escaped, whatever follows it.

    Args:
        text: text, or an exception with one.
    """
    text = str(text)
    lines = text.split("\n") if isinstance(text, Lines) else [text]
    return "\n".join(map(plain, lines))


def plain_cell(value: object) -> object:
    """What goes into a cell of a CSV file. Numbers stay numbers; None is empty; text is as `plain`,
    and what a spreadsheet would take for a formula has an apostrophe in front."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    formula = value.startswith(_FORMULA) and _NUMBER.fullmatch(value) is None
    return f"'{plain(value)}" if formula else plain(value)


def plain_label(text: str) -> str:
    """Text in a picture: as `plain_lines`; a dollar is a dollar, and no formula."""
    return plain_lines(text).replace("$", r"\$")


def plain_markdown(text: str) -> str:
    """Text in a Markdown file: on one line, no end of a table's cell, no tag, link or code."""
    return plain(text).translate(_MARKDOWN)


def _is_shown(one: str) -> bool:
    if _UNSEEN.match(one):
        return False
    # Cc: control, Cf: format, Cs: surrogates, Co, Cn: nothing that could be shown, Zl, Zp: lines.
    return unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(one: str) -> str:
    return ascii(one)[1:-1]
