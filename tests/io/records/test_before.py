"""Folders of the first version, as it wrote them: read, summarized and drawn; not gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltalens import load_study
from deltalens.catalog.studies import STUDIES, study_name
from deltalens.errors import RecordError
from deltalens.figures import draw
from deltalens.io.records import StudyFolder
from deltalens.reports import summarize
from deltalens.studies.mft_sweeps import compare
from deltalens.studies.training_plans import TrainingData
from deltalens.training.run import train
from deltalens.training.spec import TrainingSpec
from tests.support.finished_studies import BEFORE, SUMMARIZED
from tests.support.specs import run_study
from tests.support.training_folders import write_model, write_rows

WHY = "written by another version of deltalens .* can be read and drawn, but not resumed"


@pytest.fixture(params=SUMMARIZED)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(BEFORE / request.param, tmp_path / request.param))


SINCE = {"density-sweep", "evaluate", "mask-sweep", "salience"}
"""Kinds that the first version did not have."""


def test_every_kind_of_study_is_kept() -> None:
    kinds = {study_name(load_study(folder).spec) for folder in BEFORE.iterdir()}
    # An inspection always begins anew, in whatever version.
    assert kinds == {*STUDIES} - {"inspect"} - SINCE


def test_it_loads_is_summarized_and_drawn(old: Path) -> None:
    record = load_study(old)
    lines = [line for line in (old / "cells.csv").read_text().splitlines() if line]
    assert len(record.cells) == len(lines) - 1
    assert list(summarize(record).sentences())
    assert all(picture.exists() for picture in draw(old))


def test_it_is_not_gone_on_with_and_stays_as_it_is(old: Path) -> None:
    manifest = json.loads((old / "study.json").read_text())
    spec = {name: value for name, value in manifest["asked"].items() if name != "kind"}
    before = {file.name: file.read_bytes() for file in old.iterdir()}
    with pytest.raises(RecordError, match=WHY):
        StudyFolder.open(old, manifest["asked"]["kind"], spec, manifest["columns"])
    after = {file.name: file.read_bytes() for file in old.iterdir()}
    assert after == before


def test_asked_by_its_own_function_it_says_why_and_fresh_begins_anew(tmp_path: Path) -> None:
    out = shutil.copytree(BEFORE / "comparison", tmp_path / "comparison")
    rows = write_rows(tmp_path / "rows.jsonl")
    source = TrainingData(model=write_model(tmp_path / "ft"), data=rows, eval_data=[rows])
    with pytest.raises(RecordError, match=WHY):
        run_study(compare, "l1-mask", source, out, seeds=1)
    record = run_study(compare, "l1-mask", source, out, seeds=1, fresh=True)
    assert record.setting("mask_ratio", "l1-mask") == "0.1"


def test_a_ratio_that_was_not_told_from_a_default_is_shown_as_such() -> None:
    from deltalens.figures.mft_studies import load
    from deltalens.figures.mft_tables import masked

    assert "0.2, or 0.1 if none was given" in masked(load(BEFORE / "comparison", "comparison"))


def test_a_training_of_before_is_not_resumed(tmp_path: Path) -> None:
    base, rows = write_model(tmp_path / "base"), write_rows(tmp_path / "rows.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    held = {"format": 1, "deltalens": "0.1.0", "asked": {"method": "sft"}, "facts": {}}
    (out / "train.json").write_text(json.dumps(held))
    with pytest.raises(RecordError, match=WHY):
        train(base, rows, out, TrainingSpec(), resume=True)
