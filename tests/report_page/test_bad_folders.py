"""Folders that hold nothing, records that are damaged or half-finished, and hostile names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deltalens
from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.records import Cell, Measurement, StudyFolder
from deltalens.report_page import find_records
from tests.report_page.html_tree import parse
from tests.support.edits import edit
from tests.support.evaluations import Scored, write_evaluation
from tests.support.finished_studies import make_study
from tests.support.nasty import FORMULA, NAME, obeyed
from tests.support.records_of_runs import make_run, make_training

pytestmark = pytest.mark.bad_input


def report(folders: Any, tmp_path: Path) -> str:
    deltalens.report(folders, out=tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def refused(folders: Any, tmp_path: Path, message: str) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(DeltaLensError, match=message):
        deltalens.report(folders, out=out)
    assert not out.exists()


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "no study, training or run here")


def test_one_folder_without_records_among_others_is_refused(records: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused([records, tmp_path / "empty"], tmp_path, "empty: no study")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", tmp_path, "no such folder")


def test_no_folder_is_refused(tmp_path: Path) -> None:
    refused([], tmp_path, "at least one folder")


def test_another_version_is_refused(records: Path, tmp_path: Path) -> None:
    def newer(study: dict[str, Any]) -> None:
        study["format"] = 99

    edit(records / "studies" / "drop-study" / "study.json", newer)
    refused(records, tmp_path, "format")


def test_a_damaged_study_is_refused(records: Path, tmp_path: Path) -> None:
    file = records / "studies" / "drop-study" / "cells.jsonl"
    file.write_bytes(file.read_bytes().replace(b"trivial", b"trivail", 1))
    refused(records, tmp_path, "drop-study")


def test_a_file_that_is_no_page_is_not_replaced(records: Path, tmp_path: Path) -> None:
    cells = records / "studies" / "drop-study" / "cells.csv"
    before = cells.read_bytes() if cells.exists() else None
    with pytest.raises(DeltaLensError, match="a page is an HTML file"):
        deltalens.report(records, out=cells)
    assert before == (cells.read_bytes() if cells.exists() else None)


def test_a_study_without_cells_alone_makes_no_page(tmp_path: Path) -> None:
    begun(tmp_path / "begun")
    refused(tmp_path / "begun", tmp_path, "nothing is measured yet")


def test_a_study_without_cells_among_others_is_said_to_be(records: Path, tmp_path: Path) -> None:
    begun(tmp_path / "begun")
    text = report([records, tmp_path / "begun"], tmp_path)
    assert "not finished: no cell is measured yet" in text
    assert "Nothing is measured yet." in text


def begun(folder: Path) -> None:
    columns = ("strategy", "scope", "rate", "seed")
    study = StudyFolder.open(folder, "drop-study", {"changed_only": False}, columns)
    study.write_manifest()


def test_a_half_finished_study_is_said_to_be(tmp_path: Path) -> None:
    columns = ("strategy", "scope", "rate", "seed")
    spec = {"changed_only": False, "strategies": ["trivial"], "rates": ["0", "0.5", "1"]}
    study = StudyFolder.open(tmp_path / "half", "drop-study", spec, columns)
    study.facts = {"entries": 10, "unchanged": 0}
    study.write_manifest()
    setting = {"strategy": "trivial", "scope": "tensor", "rate": 0.0, "seed": 0}
    study.append(Cell(setting, {"loss": Measurement(1.0)}, 0.0))
    make_study(tmp_path / "whole", "drop-study")
    text = report([tmp_path / "half", tmp_path / "whole"], tmp_path)
    assert "not finished: 1 of 3 points are measured" in text
    assert "the fine-tune and the base are not measured yet" in text


def test_a_run_without_steps_is_a_page_of_its_own(tmp_path: Path) -> None:
    from deltalens.io.records.run import RunWriter

    RunWriter(tmp_path / "run", {"kind": "gradients"})
    deltalens.monitor(tmp_path / "run", pictures=False, html=True)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "No step is logged yet." in text
    assert "not closed" in text


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    models = [
        Scored(name, {"loss": Measurement(value, 0.1, 9)})
        for name, value in ((NAME, 1.0), (FORMULA, 2.0), ('"><img src=x onerror=alert(1)>', 3.0))
    ]
    write_evaluation(tmp_path / "scores", models, notes=[f"about {NAME}"])
    make_run(tmp_path / "run", name=NAME, nans=1)
    make_training(tmp_path / "training", notes=[f"{NAME}</script>"])
    text = report([tmp_path / "scores", tmp_path / "run", tmp_path / "training"], tmp_path)
    assert obeyed(text.encode()) == []
    tree = parse(text)
    assert len([*tree.all("script")]) == 1
    assert [*tree.all("img")] == []
    for each in tree.all():
        assert not [name for name in each.attributes if name.startswith("on")]
    assert "<script>|`x`:smile:" in tree.text
    assert "\\u202e" in tree.text


def test_a_title_is_shown_as_text(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    deltalens.report(records / "trained", out=out, title="</title><script>alert(1)</script>")
    tree = parse(out.read_text(encoding="utf-8"))
    assert len([*tree.all("script")]) == 1
    assert next(tree.all("h1")).text == "</title><script>alert(1)</script>"


def test_records_are_sorted_and_hidden_ones_passed_by(tmp_path: Path) -> None:
    for name in ("b/two", "b/one", "a", ".hidden"):
        make_study(tmp_path / "all" / name, "drop-study")
    assert [found.name for found in find_records([tmp_path / "all"])] == ["a", "b/one", "b/two"]


def test_a_search_does_not_go_deeper_than_it_says(tmp_path: Path) -> None:
    make_study(tmp_path / "all" / "1" / "2" / "3" / "4" / "5", "drop-study")
    with pytest.raises(RecordError, match="up to 4 levels"):
        find_records([tmp_path / "all"])


def test_links_are_not_followed(tmp_path: Path) -> None:
    make_study(tmp_path / "elsewhere", "drop-study")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")
    with pytest.raises(RecordError, match="no study"):
        find_records([tmp_path / "all"])


def test_a_record_named_twice_is_there_once(tmp_path: Path) -> None:
    study = make_study(tmp_path / "all" / "study", "drop-study")
    assert len(find_records([study, tmp_path / "all", study])) == 1


def test_names_that_repeat_are_told_apart(tmp_path: Path) -> None:
    folders = [make_study(tmp_path / name / "study", "drop-study") for name in "ab"]
    assert [found.name for found in find_records(folders)] == ["a/study", "b/study"]


def test_a_training_brings_its_run(tmp_path: Path) -> None:
    make_training(tmp_path / "all" / "sft")
    make_run(tmp_path / "all" / "sft" / "run")
    assert [found.name for found in find_records([tmp_path / "all"])] == ["sft", "sft/run"]


def test_nothing_but_the_page_is_written(records: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in records.rglob("*") if file.is_file()}
    report(records, tmp_path)
    assert {file: file.read_bytes() for file in records.rglob("*") if file.is_file()} == before
    assert {file.name for file in tmp_path.iterdir()} == {"records", "page.html"}
