"""What a reader is warned of: what is missing from a record, and what in it is no number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deltalens.io.records import Cell, Measurement, StudyFolder, StudyRecord, load_run, load_study
from deltalens.io.records.run import RunWriter
from deltalens.reports.caveats import caveats_of
from deltalens.reports.progress import unfinished
from tests.support.edits import edit
from tests.support.finished_studies import KINDS, make_study


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_study_misses_nothing(tmp_path: Path, kind: str) -> None:
    assert unfinished(load_study(make_study(tmp_path / "study", kind))) == ""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "inspect"])
def test_a_study_without_its_last_cell_is_unfinished(tmp_path: Path, kind: str) -> None:
    folder = make_study(tmp_path / "study", kind)
    journal = folder / "cells.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])["setting"]
    kept = [line for line in lines if not _same_point(json.loads(line)["setting"], last)]
    journal.write_bytes(b"".join(kept))
    (folder / "cells.csv").unlink(missing_ok=True)
    assert unfinished(load_study(folder)).startswith("not finished:")


def _same_point(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return {**one, "seed": 0} == {**other, "seed": 0}


def test_fewer_seeds_than_wanted_are_unfinished(tmp_path: Path) -> None:
    study = drop_study(tmp_path / "s", {"random": 0.5}, seeds=3)
    assert unfinished(study) == "not finished: 1 of 3 seeds are measured"


def drop_study(folder: Path, values: dict[str, float], seeds: int = 1) -> StudyRecord:
    spec = {
        "changed_only": False,
        "strategies": [*values],
        "rates": ["0", "0.5", "1"],
        "seeds": seeds,
    }
    columns = ("strategy", "scope", "rate", "seed")
    study = StudyFolder.open(folder, "drop-study", spec, columns)
    study.facts = {"entries": 100, "unchanged": 0, "notes": ["3 rows left out: too long"]}
    study.write_manifest()
    for strategy, value in values.items():
        for rate in (0.0, 0.5, 1.0):
            setting = {"strategy": strategy, "scope": "tensor", "rate": rate, "seed": 0}
            own = value if rate == 0.5 else rate
            study.append(Cell(setting, {"loss": Measurement(own, 0.1, 9)}, 0.0))
    study.write_table([cell.setting for cell in study.cells])
    study.close()
    return load_study(folder)


def test_notes_are_warnings(tmp_path: Path) -> None:
    assert caveats_of(drop_study(tmp_path / "s", {"trivial": 0.5})) == ["3 rows left out: too long"]


def test_values_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    (said, _) = caveats_of(drop_study(tmp_path / "s", {"trivial": math.nan}))
    assert said.startswith("1 of 3 values are NaN or infinite")


def test_failed_cells_are_told_with_their_reason(tmp_path: Path) -> None:
    drop_study(tmp_path / "s", {"trivial": 0.5})
    record = load_study(tmp_path / "s")
    with StudyFolder.open(
        tmp_path / "s", "drop-study", _spec(record), tuple(record.cells.columns[:4])
    ) as study:
        study.fail({"strategy": "random", "scope": "tensor", "rate": 0.5, "seed": 0}, "no memory")
    said = caveats_of(load_study(tmp_path / "s"))
    assert said[0] == "1 cell failed; the same call measures them again"
    assert said[1].endswith("no memory")


def _spec(record: StudyRecord) -> dict[str, Any]:
    return {name: value for name, value in record.spec.items() if name != "kind"}


def test_records_by_other_rules_are_told(tmp_path: Path) -> None:
    drop_study(tmp_path / "s", {"trivial": 0.5})

    def older(study: dict[str, Any]) -> None:
        study["identity"] = 1

    edit(tmp_path / "s" / "study.json", older)
    assert any("by other rules" in said for said in caveats_of(load_study(tmp_path / "s")))


def test_a_study_without_cells_is_unfinished(tmp_path: Path) -> None:
    study = StudyFolder.open(
        tmp_path / "s", "drop-study", {"changed_only": False}, ("strategy", "scope", "rate", "seed")
    )
    study.write_manifest()
    assert caveats_of(load_study(tmp_path / "s")) == ["not finished: no cell is measured yet"]


def a_run(folder: Path, close: bool = True, **values: Any) -> Path:
    run = RunWriter(folder, {"kind": "gradients"})
    columns = {"entries": 10, "norm": 1.0, "zeros": 0, "nans": 0, "infinities": 0, "subnormals": 0}
    columns |= dict.fromkeys(("mean", "q50", "q90", "q99", "q999"), 0.1) | values
    rows = {name: [value, value] for name, value in columns.items()}
    run.add("tensors", {"step": [0, 10], "tensor": ([0, 0], ["w"]), **rows})
    run.flush()
    if close:
        run.close()
    return folder


def test_a_run_that_goes_on_is_told(tmp_path: Path) -> None:
    assert caveats_of(load_run(a_run(tmp_path / "a"))) == []
    (said,) = caveats_of(load_run(a_run(tmp_path / "b", close=False)))
    assert said.startswith("not closed")


def test_gradients_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    (said,) = caveats_of(load_run(a_run(tmp_path / "a", nans=1)))
    assert said == "NaN in the gradient of 'w': first at step 0, in 2 logged steps"


def test_stalled_tensors_are_named(tmp_path: Path) -> None:
    (said,) = caveats_of(load_run(a_run(tmp_path / "a", stalled=0.4)))
    assert said.startswith("1 tensor stalls at step 10")
    assert "w 40 %" in said


def test_a_few_stalled_entries_are_nothing_to_say(tmp_path: Path) -> None:
    assert caveats_of(load_run(a_run(tmp_path / "a", stalled=0.001))) == []
