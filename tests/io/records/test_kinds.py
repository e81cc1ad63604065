"""What each kind of study holds is checked when its folder is read: the message names the field."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import deltalens
from deltalens.errors import RecordError
from deltalens.io.records.kinds import kind_of
from tests.support.edits import edit
from tests.support.finished_studies import KINDS, make_study

pytestmark = pytest.mark.bad_input

NOTHING_IS_THIS: Mapping[str, Any] = {"odd": [[{"odd": None}]]}


def remove(study: dict[str, Any], part: str, name: str) -> None:
    del study[part][name]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_is_read_is_checked(tmp_path: Path, kind: str) -> None:
    """Needed ones are there; all are of their type."""
    folder = make_study(tmp_path / "study", kind)
    file = folder / "study.json"
    raw = file.read_bytes()
    asked = json.loads(raw)["asked"]
    known = kind_of(asked)
    assert known is not None
    for part, fields in (("asked", known.spec), ("facts", known.facts)):
        for name in fields.needed:
            edit(file, functools.partial(remove, part=part, name=name))
            with pytest.raises(RecordError, match=rf"study\.json: {part}\.{name} is missing"):
                deltalens.load_study(folder)
            file.write_bytes(raw)
        for name in {**fields.needed, **fields.known}:
            odd = {name: NOTHING_IS_THIS}
            edit(file, lambda study, part=part, odd=odd: study[part].update(odd))
            with pytest.raises(RecordError, match=rf"study\.json: .*{part}\.{name}\b.*expected"):
                deltalens.load_study(folder)
            file.write_bytes(raw)
    for column in known.columns(asked):
        odd = {column: NOTHING_IS_THIS}
        lines = (folder / "cells.jsonl").read_bytes()
        edit(folder / "cells.jsonl", lambda cell, odd=odd: cell["setting"].update(odd), line=0)
        with pytest.raises(RecordError, match=rf"line 1: setting\.{column} is .* expected"):
            deltalens.load_study(folder)
        (folder / "cells.jsonl").write_bytes(lines)


HUGE = 10**12
GONE = object()


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("drop-study", {"facts": {"entries": 0}}, "facts.entries is 0"),
        ("drop-study", {"facts": {"unchanged": HUGE}}, "unchanged is greater than facts.entries"),
        ("drop-study", {"asked": {"seeds": HUGE}}, "asked.seeds is 1000000000000"),
        ("drop-study", {"asked": {"rates": ["1/0"]}}, r"asked.rates\[0\] is \"1/0\""),
        ("drop-study", {"asked": {"changed_only": 0}}, "changed_only is 0; expected true or false"),
        ("drop-study", {"facts": {"better": {"loss": "up"}}}, "better.loss is .* higher, lower"),
        ("drop-study", {"columns": ["strategy"]}, "columns is"),
        ("inspect", {"facts": {"per_octave": 0}}, "per_octave is 0"),
        ("inspect", {"facts": {"histograms": {"a": [[1, 2], [0, 2]]}}}, "ascending"),
        ("inspect", {"facts": {"histograms": {"a": []}}}, "no entry in any bin"),
        ("inspect", {"facts": {"per_octave": GONE}}, "per_octave is missing"),
        ("layer-sweep", {"asked": {"groups": [HUGE]}}, r"groups\[0\] is"),
        (
            "layer-sweep",
            {"facts": {"blocks": {"0": {"entries": 1, "squares": 0.0}}, "outside": {}}},
            r"outside.entries is missing.*\(and 1 more\)",
        ),
        ("layer-sweep-mft", {"facts": {"blocks": HUGE}}, "facts.blocks is"),
        ("comparison", {"asked": {"settings": {"mft": {"threshold": "x"}}}}, "mft.threshold is"),
        ("comparison", {"asked": {"eval_data": []}}, "eval_data is empty, and .* no asked.tasks"),
        ("efficiency", {"facts": {"flops_of_a_step": float("nan")}}, "flops_of_a_step is NaN"),
        ("landscape", {"asked": {"grid": [-3]}}, r"grid\[0\] is -3"),
        ("landscape", {"asked": {"grid": [3, 3]}}, "grid has 2 numbers, .* asked.plane 'line'"),
        ("landscape", {"asked": {"range": [[1.0, 1.0]]}}, "ascending pairs"),
        ("landscape", {"facts": {"plane": {"marks": []}}}, "plane.labels is missing"),
    ],
)
def test_bounds_and_what_goes_together_are_checked(
    tmp_path: Path, kind: str, change: dict[str, Any], said: str
) -> None:
    folder = make_study(tmp_path / "study", kind)

    def apply(study: dict[str, Any]) -> None:
        for part, own in change.items():
            both = {**study[part], **own} if isinstance(own, dict) else own
            study[part] = (
                {k: v for k, v in both.items() if v is not GONE} if isinstance(both, dict) else both
            )

    edit(folder / "study.json", apply)
    with pytest.raises(RecordError, match=said) as caught:
        deltalens.load_study(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_fields_that_this_version_does_not_know_are_left_alone(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "landscape")
    clean = deltalens.load_study(folder)

    def later(study: dict[str, Any]) -> None:
        study["later"] = 1
        for part in (study["asked"], study["facts"], study["facts"]["plane"]["marks"][0]):
            part["later"] = {"than": ["this"]}

    edit(folder / "study.json", later)
    found = deltalens.load_study(folder)
    assert found.facts["later"] == {"than": ["this"]}
    assert found.cells.equals(clean.cells)


def test_a_kind_that_is_not_known_is_read_as_it_is(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", "comparison")
    edit(folder / "study.json", lambda study: study["asked"].update(kind="of tomorrow", seeds="x"))
    assert deltalens.load_study(folder).kind == "of tomorrow"
