"""Folders of records that pages are made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import deltalens
from tests.report_page.html_tree import Element, parse
from tests.support.finished_studies import KINDS, make_study
from tests.support.records_of_runs import make_run, make_training


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of each kind, a run and a training."""
    folder = tmp_path_factory.mktemp("made")
    for kind in KINDS:
        make_study(folder / "studies" / kind, kind)
    make_run(folder / "watched" / "run")
    make_training(folder / "trained")
    return folder


@pytest.fixture(scope="session")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Element]:
    """The page of all of them: its text, and parsed."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    deltalens.report(made, out=out)
    text = out.read_text(encoding="utf-8")
    return text, parse(text)


@pytest.fixture
def records(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "records"))
