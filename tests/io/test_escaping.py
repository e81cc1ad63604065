"""Names from files are shown as they are where they are harmless, and escaped elsewhere."""

import csv
import io
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalens.errors import DeltaLensError, Lines, fault_list
from deltalens.io.escaping import (
    plain,
    plain_cell,
    plain_label,
    plain_lines,
    plain_markdown,
)

ANY = st.text(st.characters(exclude_categories=()), max_size=30)


@pytest.mark.property
@given(ANY)
def test_no_control_character_is_left(text: str) -> None:
    shown = plain(text)
    assert all(unicodedata.category(one)[0] not in "C" for one in shown)
    assert not set("\u2028\u2029") & set(shown)
    shown.encode()


@pytest.mark.parametrize(
    "text", ["model.layers.0.mlp", "‖δ‖/‖w‖", "99 % |δ|", "±", "模型", "naïve", ""]
)
def test_ordinary_names_stay(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;Zm9v\x07", r"\x1b]52;c;Zm9v\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\nb\r", r"a\nb\r"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2066\u200b\ufeff", r"\u2066\u200b\ufeff"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("\x7f\x08", r"\x7f\x08"),
        ("\u115f\u3164\u034f\ufe0f", r"\u115f\u3164\u034f\ufe0f"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_only_lines_of_a_list_stay_lines() -> None:
    error = DeltaLensError(fault_list("of a\n  - b:", ["one\n  - forged", "two"]))
    assert plain_lines(error) == r"of a\n  - b:" + "\n" + r"  - one\n  - forged" + "\n  - two"
    assert plain_lines("a\n  - forged") == r"a\n  - forged"


def test_lines_of_a_list_pass_from_one_process_to_another() -> None:
    error = pickle.loads(pickle.dumps(DeltaLensError(fault_list("a", ["b\\", "c\nd"]))))
    assert plain_lines(error) == "a\n  - b\\\n  - c\\nd"


@pytest.mark.property
@given(ANY)
def test_no_cell_of_text_is_a_formula(text: str) -> None:
    written = io.StringIO()
    csv.writer(written).writerow([plain_cell(text), "x"])
    cell = next(csv.reader([written.getvalue()]))[0]
    assert not cell.startswith(("=", "@", "\t", "\r"))
    if cell.startswith(("+", "-")):
        float(cell)


@pytest.mark.parametrize("number", ["-1", "+0.5", "-1e-3", "-inf", -2, 0.5, True])
def test_numbers_stay_numbers(number: object) -> None:
    assert plain_cell(number) == number


def test_nothing_is_an_empty_cell() -> None:
    assert plain_cell(None) == ""


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "@SUM(1)", "-cmd", "+1+2", "\uff1dcmd"])
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert plain_cell(text) == f"'{text}"


def test_a_dollar_is_no_formula_and_lines_of_a_label_stay() -> None:
    assert plain_label("$x$\n\x1b") == r"\$x\$\n\x1b"
    assert plain_label(Lines("$x$", "\x1b")) == "\\$x\\$\n\\x1b"


def test_markdown_has_no_cells_tags_and_links_of_a_name() -> None:
    assert plain_markdown("a|b<script>[x](y)`&\n") == (r"a\|b&lt;script&gt;\[x\](y)\`&amp;\\n")
