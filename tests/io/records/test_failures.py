"""The records of cells that failed: what they say, and what becomes of damaged ones."""

from pathlib import Path

import pytest

from deltalens import load_study
from deltalens.errors import RecordError
from deltalens.io.records import Cell, Failure, Measurement, StudyFolder
from deltalens.io.records.failures import FAILURES, read_failures

COLUMNS = ("a", "b")
ONE, TWO = {"a": "x", "b": 1.0}, {"a": "y"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two cells failed, one of them twice; a third is finished."""
    with StudyFolder.open(tmp_path / "s", "test", {}, COLUMNS) as folder:
        folder.append(Cell({"a": "z", "b": 0.0}, {"m": Measurement(1.0)}, 1.0))
        folder.fail(ONE, "first")
        folder.fail(TWO, "second\nline")
        folder.fail(ONE, "again")
    return tmp_path / "s"


def test_the_last_reason_of_each_cell_counts(study: Path) -> None:
    expected = (Failure(TWO, "second\nline"), Failure(ONE, "again"))
    assert load_study(study).failures == expected
    with StudyFolder.open(study, "test", {}, COLUMNS) as folder:
        assert tuple(folder.failures) == expected
        folder.forgive(TWO)
        folder.forgive({"a": "z"})
    assert load_study(study).failures == (Failure(ONE, "again"),)


def test_the_table_and_the_journal_know_nothing_of_them(study: Path) -> None:
    assert len(load_study(study).cells) == 1
    assert len((study / "cells.jsonl").read_text().splitlines()) == 1


def test_starting_over_forgets_them(study: Path) -> None:
    with StudyFolder.open(study, "test", {}, COLUMNS, fresh=True) as folder:
        assert folder.failures == []
    assert not (study / FAILURES).exists()


@pytest.mark.bad_input
def test_a_torn_last_line_is_cut_off(study: Path) -> None:
    file = study / FAILURES
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:20])
    assert len(load_study(study).failures) == 2
    with StudyFolder.open(study, "test", {}, COLUMNS):
        assert file.read_bytes() == whole


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [(b"first", b"fizzy", "line 1"), (b'"reason"', b'"raisin"', "line 1"), (b"{", b"[", "line 1")],
)
def test_a_damaged_line_is_refused(study: Path, before: bytes, after: bytes, message: str) -> None:
    file = study / FAILURES
    file.write_bytes(file.read_bytes().replace(before, after, 1))
    with pytest.raises(RecordError, match=f"{message}.*remove the line"):
        load_study(study)


@pytest.mark.bad_input
def test_a_cell_of_another_study_is_refused(study: Path) -> None:
    with pytest.raises(RecordError, match=r"setting\.b is not a column of this study"):
        read_failures(study / FAILURES, ("a",))
    (study / FAILURES).unlink()
    (study / FAILURES).mkdir()
    with pytest.raises(RecordError, match="where a plain file should be"):
        load_study(study)
