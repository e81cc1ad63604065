"""`deltalens report` and `deltalens monitor --html`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.finished_studies import make_study
from tests.support.records_of_runs import make_run
from tests.support.runs import command, succeeds


def test_it_says_what_its_top_says(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", "drop-study")
    said = succeeds("report", study, "-o", tmp_path / "page.html")
    assert "of the entries" in said
    assert said.splitlines()[-1] == f"page:    {tmp_path / 'page.html'}"
    assert "<title>study – deltalens</title>" in (tmp_path / "page.html").read_text("utf-8")


def test_it_says_the_same_as_json(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", "drop-study")
    said = json.loads(succeeds("report", study, "-o", tmp_path / "page.html", "--json"))
    assert said["records"] == ["study"]
    assert {"question", "number", "sentence", "uncertainty"} == {*said["answers"][0]}


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    done = command("report", tmp_path, "-o", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "no study, training or run here" in done.output
    assert not (tmp_path / "page.html").exists()


def test_monitor_writes_the_page_of_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sft" / "run", close=False)
    said = succeeds("monitor", run, "--html", "--no-pictures")
    assert f"page:    {run / 'report.html'}" in said
    page = (run / "report.html").read_text("utf-8")
    assert "<h1>sft/run</h1>" in page
    assert "not closed" in page
    assert not [*run.glob("*.png")]


def test_monitor_writes_no_page_unless_told_to(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    succeeds("monitor", run, "--no-pictures")
    assert not (run / "report.html").exists()
