"""A study of any kind, whatever one of its fields holds: it is refused in one line, or it loads, is
summarized and drawn. The checksums are right: only what the fields hold can be what is noticed."""

from __future__ import annotations

import copy
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deltalens
from deltalens import DeltaLensError
from deltalens.figures import drawings
from deltalens.figures.mft_studies import load
from deltalens.figures.mft_tables import masked
from tests.support.edits import edit
from tests.support.finished_studies import KINDS, make_study, said_of

pytestmark = pytest.mark.bad_input

NAN = float("nan")
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 10**12, 1 << 63, 10**400, 0.0, -0.5, 0.5, 1.5, 1e308, -1e308,
    5e-324, NAN, float("inf"), "", "x", "nan", "1e999", "7-4", "0-99999999", "a/b", "a,b=c", "=",
    "line\nbreak", "a\0b", "\x1b]52;c;x\x07", "$\\frac", "<b>&", "é" * 300, "x" * 100_000,
    [], {}, [[]], [0, 1], [[0, 1]], [["f", 1, "d"]], {"a": "b"}, {"a": {"b": [1]}},
    json.loads("[" * 60 + "]" * 60), list(range(1_000)),
]  # fmt: skip
GONE = object()
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every field and item of a JSON value, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in items:
        yield (*at, name)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*at, name))


def put(value: Any, place: Place, odd: Any) -> None:
    """Replace what is in a place, or take it away."""
    for name in place[:-1]:
        value = value[name]
    if odd is GONE:
        del value[place[-1]]
    else:
        value[place[-1]] = copy.deepcopy(odd)


def rename(value: Any, place: Place, name: str) -> None:
    """Give a field another name, if it has one."""
    for one in place[:-1]:
        value = value[one]
    if isinstance(value, dict):
        value[name] = value.pop(place[-1])


def use(folder: Path, kind: str) -> str:
    """Load, summarize and draw: what it is refused with, or nothing. Pictures are rendered
    coarsely, and kept nowhere."""
    try:
        record = deltalens.load_study(folder)
        repr(record.cells)
        with suppress(DeltaLensError):
            "".join(said_of(record, kind)).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for drawing in drawings(folder):
                drawing.figure.savefig(io.BytesIO(), format="png", dpi=15)
    except DeltaLensError as error:
        return str(error)
    return ""


def lines_of(folder: Path) -> int:
    return len((folder / "cells.jsonl").read_bytes().splitlines())


@pytest.mark.property
@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_field_of_any_value_is_refused_in_one_line_or_used(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    folder = tmp_path / "study"
    shutil.rmtree(folder, ignore_errors=True)
    make_study(folder, kind)
    line = data.draw(st.one_of(st.none(), st.integers(0, lines_of(folder) - 1)), "line")
    file = folder / ("study.json" if line is None else "cells.jsonl")
    raw = file.read_bytes() if line is None else file.read_bytes().splitlines()[line]
    found = json.loads(raw)
    place = data.draw(st.sampled_from([p for p in places(found) if p != ("checksum",)]), "place")
    if data.draw(st.booleans(), "renamed"):
        name = data.draw(st.sampled_from([odd for odd in ODD if isinstance(odd, str)]), "name")
        edit(file, lambda value: rename(value, place, name), line)
    else:
        odd = data.draw(st.sampled_from([GONE, *ODD]), "odd")
        edit(file, lambda value: put(value, place, odd), line)
    assert "\n" not in use(folder, kind)


VALUES: dict[str, tuple[Any, ...]] = {
    "no numbers": ("nan", "inf", "-inf"),
    "at the ends of what a float holds": (1e308, "nan", -1e308, 5e-324, "inf"),
    "the same": (0.0,),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "inspect"])
def test_values_that_no_axis_shows_are_drawn_as_gaps(
    tmp_path: Path, kind: str, values: tuple[Any, ...]
) -> None:
    folder = make_study(tmp_path / "study", kind)
    (folder / "cells.csv").unlink()
    for line in range(lines_of(folder)):

        def change(cell: Any, line: int = line) -> None:
            for place, measured in enumerate(cell["metrics"].values()):
                measured[0] = values[(line + place) % len(values)]

        edit(folder / "cells.jsonl", change, line)
    assert use(folder, kind) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_no_cell_or_a_single_one_is_drawn_or_refused(tmp_path: Path, kind: str) -> None:
    folder = make_study(tmp_path / "study", kind)
    (folder / "cells.csv").unlink()
    lines = (folder / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "cells.jsonl").write_bytes(b"")
    assert "with finished" in use(folder, kind)
    for kept in lines[:2]:
        (folder / "cells.jsonl").write_bytes(kept)
        assert "\n" not in use(folder, kind)


def test_a_name_that_looks_like_a_step_and_is_none_is_a_name(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "comparison")
    (folder / "cells.csv").unlink()
    own = {"f1@ten": [1, 0, 1]}
    for line in range(lines_of(folder)):
        edit(folder / "cells.jsonl", lambda cell: cell["metrics"].update(own), line)
    assert use(folder, "comparison") == ""


def test_ratios_by_projection_are_told_in_a_table(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "comparison")
    own = {"mft": {"mask_ratio": "0.1,4-7.down=0.05,q=0.2"}}
    edit(folder / "study.json", lambda study: study["asked"].update(settings=own))
    assert masked(load(folder, "comparison")) == "mask ratio 0.1 and 0.05 (4-7.down) and 0.2 (q)"


def test_an_efficiency_study_without_plain_training_yet_compares_nothing(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "efficiency")
    (folder / "cells.csv").unlink()
    lines = (folder / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "cells.jsonl").write_bytes(next(line for line in lines if b"gmt" in line))
    assert json.loads(said_of(deltalens.load_study(folder), "efficiency")[-1])["methods"] == {}
