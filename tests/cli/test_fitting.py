"""Tables on terminals of any width."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deltalens.cli.fitting import FittingTable
from deltalens.io.tables import Table
from tests.support.profile import repeatable

NUMBERS = ("288,230,376", "0.9600 ± 0.0230", "1.23e-04", "12.34 %", "-", "nan")
HEADS = ("entries", "of the delta", "‖δ‖ / ‖base‖", "GFLOP a micro-batch", "kept alone", "lost")
NAMES = ("0", "0.05", "random-mask-weights", "model.layers.11.self_attn.q_proj.weight")


def printed(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(FittingTable(table))
    return out.getvalue()


TABLES = st.integers(1, 9).flatmap(
    lambda columns: st.builds(
        Table,
        st.sampled_from(["", "exact_match, groups of 4"]),
        st.tuples(st.just("blocks"), *[st.sampled_from(HEADS)] * columns),
        st.lists(
            st.tuples(st.sampled_from(NAMES), *[st.sampled_from(NUMBERS)] * columns),
            min_size=1,
            max_size=4,
        ).map(tuple),
    )
)


@pytest.mark.property
@repeatable(60)
@given(TABLES, st.sampled_from([40, 60, 80, 120]))
def test_no_number_is_cut_and_no_line_is_too_long(table: Table, width: int) -> None:
    lines = printed(table, width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    shown = [re.split(r"  +", line.strip()) for line in lines]
    found = [cell for row in shown for cell in row]
    for row in table.rows:
        for cell in row[1:]:
            assert found.count(cell) >= sum(one.count(cell) for one in table.rows)
        # A name may be in several lines; its parts are all there.
        pieces = [piece for piece in re.split(r"[./_-]", row[0]) if piece]
        assert all(piece in "".join(found) for piece in pieces)


@pytest.mark.property
@repeatable(60)
@given(TABLES)
def test_table_that_fits_stays_as_it_is(table: Table) -> None:
    wide = printed(table, 1000)
    longest = max(map(len, wide.splitlines()))
    assert printed(table, max(longest, 120)) == wide


def test_heads_are_broken_first_then_names_then_the_columns_are_spread() -> None:
    heads = ("tensor", *["lost in bf16"] * 4)
    table = Table("", heads, (("model.layers.10.mlp.up_proj", *["33.3 %"] * 4),))
    assert "lost in bf16" in printed(table, 120)
    (narrow,) = [line for line in printed(table, 80).splitlines() if "33.3" in line]
    assert narrow.split("  ")[0].strip() == "model.layers.10.mlp.up_proj"
    broken = printed(table, 68).splitlines()
    assert [line.strip() for line in broken if "up_proj" in line] == ["up_proj"]
    assert sum("33.3" in line for line in broken) == 1
    spread = [line for line in printed(table, 50).splitlines() if "33.3" in line]
    assert [line.count("33.3") for line in spread] == [3, 1]


@pytest.mark.parametrize("width", [10, 20])
def test_even_on_a_strip_every_digit_is_there(width: int) -> None:
    text = printed(Table("", ("name", "entries"), (("a", "288,230,376"),)), width)
    assert "288230376" in "".join(re.findall(r"\d", text))
