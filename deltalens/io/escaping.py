"""Names that come from files, made harmless where they are shown: one function for each kind of
place. A tensor, a file, a row or another library can be called anything: a terminal's commands, a
spreadsheet's formula, markup, a formula of a picture, or characters that turn a line round."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["plain", "plain_cell", "plain_label", "plain_lines", "plain_markdown"]

_HARMLESS = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u02ff\u0370-\u05ff\u2013-\u2027\u2190-\u22ff]*")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)")
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
    """Text that may have further lines, each indented by two spaces, as a list of faults has them;
    any other line end is part of a name, and escaped. Else as `plain`."""
    return "\n  ".join(plain(part) for part in str(text).split("\n  "))


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
    """Text in a picture: lines stay, else as `plain`; a dollar is a dollar, and no formula."""
    return "\n".join(plain(line) for line in text.split("\n")).replace("$", r"\$")


def plain_markdown(text: str) -> str:
    """Text in a Markdown file: on one line, no end of a table's cell, no tag, link or code."""
    return plain(text).translate(_MARKDOWN)


def _is_shown(one: str) -> bool:
    # Cc: control, Cf: format, Cs: surrogates, Co, Cn: nothing that could be shown, Zl, Zp: lines.
    return unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(one: str) -> str:
    return ascii(one)[1:-1]
