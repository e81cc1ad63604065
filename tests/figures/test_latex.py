"""Tables as LaTeX: what looks like a command is none, and where there is a LaTeX it compiles."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deltalens.figures import draw_named
from deltalens.figures.latex import as_latex
from deltalens.figures.tables import Block, Entry, TableFigure
from tests.figures.test_every_figure import TABLES_DRAWN

PAGE = r"""\documentclass{article}
\usepackage[a4paper,margin=1cm,landscape]{geometry}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


def table(*rows: str, heads: tuple[str, ...] = ("method", "score")) -> TableFigure:
    block = Block("study", "This study", heads, tuple((Entry(row), Entry("1")) for row in rows), 1)
    return TableFigure("some_table", "Some table", (block, block), ("A note.",))


def test_a_bracket_or_star_at_the_beginning_of_a_row_is_no_argument() -> None:
    source = as_latex(table("[Ours] mask", "*", "plain", heads=("a\n[b]", "c")))
    assert "{}[Ours] mask & 1" in source
    assert "{}* & 1" in source
    assert "\nplain & 1" in source
    assert r"\shortstack{a \\ {}[b]}" in source


def test_each_block_has_a_float_of_its_own_and_the_last_one_the_notes() -> None:
    source = as_latex(table("x"))
    floats = source.split(r"\begin{table*}")[1:]
    assert [r"\label{tab:some-table}" in floats[0], r"\label{tab:some-table-2}" in floats[1]] == [
        True
    ] * 2
    assert ["A note." in each for each in floats] == [False, True]
    assert all(r"\caption{Some table. This study}" in each for each in floats)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs")
@pytest.mark.parametrize("name", [*TABLES_DRAWN, "rows that begin with a bracket"])
def test_it_compiles(tmp_path: Path, name: str) -> None:
    if name in TABLES_DRAWN:
        source = draw_named(name, TABLES_DRAWN[name](tmp_path / "study"))[0].texts["tex"]
    else:
        source = as_latex(table("[Ours]", "*"))
    (tmp_path / "page.tex").write_text(PAGE % source)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    assert "Overfull" not in said
    assert "too large" not in said
