"""Names and words that a terminal, a spreadsheet, a browser or a picture would obey; no test."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

NAME = (
    "n\x1b]52;c;Zm9v\x07\x1b[2J\x9b31m\x08\r\n  - [bold][link=http:x]$\\frac{1}{0}$ $u\\"
    "\t\u202e\u2066\u200b\u2028\ufe0f<script>|`x`:smile:\x7f"
)
"""For a file, a folder, a tensor, a field: all at once."""
FORMULA = "=cmd|' C calc'!A0"
WORDS = (NAME, FORMULA, "@SUM(1)", "+1+cmd", "-1-cmd", "\uff1dcmd", "[/]", "$", "_hidden", "\x1b")

_LINE_ENDS = {"\n"}


def is_obeyed(one: str) -> bool:
    """Whether something happens where this is printed, or nothing is seen."""
    invisible = "\ufe0f\u034f\u115f\u3164"
    return unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") or one in invisible


def obeyed(printed: bytes) -> list[str]:
    """What of a text is obeyed, with what stands around it; line ends are the printer's own."""
    text = printed.decode()
    return [
        ascii(text[max(0, place - 40) : place + 40])
        for place, one in enumerate(text)
        if is_obeyed(one) and one not in _LINE_ENDS
    ]


def formulas(file: Path) -> list[str]:
    """Cells of a CSV file that a spreadsheet would reckon."""
    cells = [cell for row in csv.reader(io.StringIO(file.read_text(), newline="")) for cell in row]
    return [
        cell
        for cell in cells
        if cell[:1]
        in ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
        and re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?|[+-]inf", cell) is None
    ]


def faults_of(folder: Path) -> list[str]:
    """What is wrong with the tables and pictures of a folder."""
    found = []
    for file in sorted(folder.rglob("*")):
        kind = file.suffix if file.is_file() else ""
        if kind in (".csv", ".svg", ".md"):
            found += [f"{file.name}: obeyed: {one}" for one in obeyed(file.read_bytes())]
        if kind == ".csv":
            found += [f"{file.name}: formula: {one}" for one in formulas(file)]
        if kind == ".svg":
            ElementTree.parse(file)
        if kind == ".md":
            found += [f"{file.name}: {one}" for one in faults_of_markdown(file.read_text())]
    return found


def faults_of_markdown(text: str) -> list[str]:
    """Rows with other cells than their head, and what a browser would take for its own."""
    found, cells = [], 0
    for line in text.split("\n"):
        count = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
        if line.startswith("|"):
            cells = cells or count
            found += [f"{count} for {cells} ends of cells: {line}"] * (count != cells)
        else:
            cells = 0
        found += [f"a tag: {line}"] * ("<" in line)
        found += [f"code or a link: {line}"] * bool(re.search(r"(?<!\\)(?:\\\\)*[`\[]", line))
    return found
