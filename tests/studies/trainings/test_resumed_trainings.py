"""A study of trainings that goes on with a folder whose record is odd, or was torn by a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import RecordError
from deltalens.io.records import StudyFolder
from deltalens.studies.mft_sweeps import compare
from deltalens.studies.training_notes import NOTES, gather_notes
from deltalens.studies.training_plans import TrainingData
from tests.support.edits import edit
from tests.support.specs import run_study
from tests.support.training_folders import write_model, write_rows

pytestmark = pytest.mark.resume


def test_settings_that_no_training_has_are_refused_before_any(tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "s"
    source = TrainingData(model=write_model(tmp_path / "ft"), data=rows, eval_data=[rows])
    run_study(compare, "l1-mask", source, out, seeds=1)
    cells = (out / "cells.jsonl").read_bytes()

    def add(study: dict[str, Any]) -> None:
        study["asked"]["methods"].append("random-mask-weights")
        study["asked"]["settings"]["random-mask-weights"] = {"odd": 1}

    edit(out / "study.json", add)
    with pytest.raises(RecordError, match="cannot read the settings of its trainings"):
        run_study(compare, "l1-mask", source, out, seeds=1)
    assert (out / "cells.jsonl").read_bytes() == cells


def test_a_torn_line_of_notes_is_left_out(tmp_path: Path) -> None:
    study = StudyFolder.open(tmp_path / "s", "comparison", {}, ("method", "seed"))
    (study.path / NOTES).write_bytes(b'["mft: one"]\n["mft: tw\n[7]\n{"a": 1}\n["mft: three"]\n')
    gather_notes(study)
    study.close()
    assert study.facts["notes"] == ["mft: one", "mft: three"]
