"""Damage to a record of ours is refused, by the name of what is damaged, or changes no number."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import deltalens
from deltalens import DeltaLensError
from deltalens.catalog.studies import STUDIES
from deltalens.errors import RecordError
from deltalens.io.records import StudyFolder
from tests.support.edits import edit
from tests.support.finished_studies import KINDS, make_study

pytestmark = pytest.mark.bad_input

SINGLE_BITS = 60


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "study", "drop-study")


def cells_of(folder: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return deltalens.load_study(folder).cells


@pytest.mark.parametrize("name", ["study.json", "cells.jsonl"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, kind: str, name: str) -> None:
    folder = make_study(tmp_path / "study", kind)
    clean, file = deltalens.load_study(folder), folder / name
    raw, draw, refused = file.read_bytes(), random.Random(1), list[str]()
    for _ in range(SINGLE_BITS):
        at = draw.randrange(len(raw) - 1)  # What ends a journal's last line may tear.
        file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :])
        try:
            found = deltalens.load_study(folder)
        except DeltaLensError as error:
            refused.append(str(error))
            continue
        assert found.spec == clean.spec
        assert found.facts == clean.facts
        pd.testing.assert_frame_equal(found.cells, clean.cells)
    assert len(refused) > SINGLE_BITS // 2
    assert all(name in said and "\n" not in said for said in refused)


def test_a_damaged_line_is_named_with_what_to_do_and_the_rest_goes_on(study: Path) -> None:
    file = study / "cells.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], lines[1].replace(b"0.5", b"0.6", 1), *lines[2:]]))
    with pytest.raises(RecordError, match=r"cells\.jsonl, line 2: damaged: .*remove the line"):
        deltalens.load_study(study)
    file.write_bytes(b"".join([lines[0], *lines[2:]]))
    (study / "cells.csv").unlink()
    assert len(cells_of(study).drop_duplicates(["strategy", "rate", "seed"])) == len(lines) - 1


def test_a_study_that_is_refused_stays_as_it_is(study: Path) -> None:
    file, spec = study / "cells.jsonl", dict(deltalens.load_study(study).spec)
    damaged = file.read_bytes().replace(b"0.5", b"0.6", 1) + b'{"setting": {"strat'
    file.write_bytes(damaged)
    with pytest.raises(RecordError, match="line 2: damaged"):
        StudyFolder.open(study, spec.pop("kind"), spec, STUDIES["drop-study"].columns)
    assert file.read_bytes() == damaged


def test_a_torn_last_line_does_not_count_and_a_whole_one_without_checksum_is_refused(
    study: Path,
) -> None:
    file = study / "cells.jsonl"
    raw = file.read_bytes()
    (study / "cells.csv").unlink()
    clean = cells_of(study)
    file.write_bytes(raw + b'{"setting": {"strategy": "salient", "sc')
    pd.testing.assert_frame_equal(cells_of(study), clean)
    edit(file, lambda cell: cell, line=0)
    lines = file.read_bytes().splitlines()
    file.write_bytes(lines[0].split(b', "checksum"')[0] + b"}\n")
    with pytest.raises(RecordError, match="line 1: damaged: its checksum is missing"):
        deltalens.load_study(study)


def test_a_line_that_stands_twice_counts_once_and_one_with_other_numbers_is_refused(
    study: Path,
) -> None:
    file = study / "cells.jsonl"
    clean, raw = cells_of(study), file.read_bytes()
    lines = raw.splitlines(keepends=True)
    file.write_bytes(raw + lines[0])
    pd.testing.assert_frame_equal(cells_of(study), clean)
    edit(file, lambda cell: cell["metrics"].update(kl=[0.5, 0.0, 4]), line=len(lines))
    with pytest.raises(
        RecordError, match=f"lines 1 and {len(lines) + 1} have different numbers for the same"
    ):
        deltalens.load_study(study)


@pytest.mark.parametrize(
    ("name", "at"), [("study.json", None), ("cells.jsonl", 0)], ids=["manifest", "journal"]
)
def test_a_name_twice_a_lone_surrogate_and_a_depth_without_end_are_no_record(
    study: Path, name: str, at: int | None
) -> None:
    file = study / name
    raw = file.read_bytes()
    lines = raw.split(b"\n") if at is not None else [raw]
    for what, said in (
        (b'{"asked": 1, "asked": 2}', "more than once"),
        (b'{"\\ud800": 1}', "not valid Unicode"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[" * 100 + b"]" * 100, "levels deep"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
    ):
        file.write_bytes(b"\n".join([what, *lines[1:]]))
        with pytest.raises(RecordError, match=said):
            deltalens.load_study(study)


DAMAGED_TABLES: dict[str, Callable[[bytes], bytes]] = {
    "not UTF-8": lambda raw: b"\xff\xfe" + raw,
    "NUL": lambda raw: raw.replace(b"kl", b"k\0l", 1),
    "a huge field": lambda raw: raw + b"x" * 200_000 + b"\n",
    "another number": lambda raw: raw.replace(b"0.0589", b"0.0588", 1),
    "another setting": lambda raw: raw.replace(b"salient", b"saliens", 1),
    "a row less": lambda raw: raw[: raw[:-1].rfind(b"\n") + 1],
    "open quotes": lambda raw: raw.replace(b"salient", b'"salient', 1),
    "empty": lambda raw: b"",
}


@pytest.mark.parametrize("how", sorted(DAMAGED_TABLES))
def test_a_damaged_table_is_passed_over_with_a_warning_and_written_anew(
    study: Path, how: str
) -> None:
    clean, table = deltalens.load_study(study), study / "cells.csv"
    before = table.read_bytes()
    damaged = DAMAGED_TABLES[how](before)
    assert damaged != before
    table.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"cells\.csv: does not match the journal"):
        found = deltalens.load_study(study)
    columns = [*clean.cells.columns]
    pd.testing.assert_frame_equal(
        found.cells.sort_values(columns, ignore_index=True),
        clean.cells.sort_values(columns, ignore_index=True),
    )
    spec = {name: value for name, value in clean.spec.items() if name != "kind"}
    again = StudyFolder.open(study, "drop-study", spec, columns[:4])
    again.write_finished([*clean.cells[columns[:4]].drop_duplicates().to_dict("records")])
    again.close()
    assert table.read_bytes() == before


def test_a_table_of_fewer_cells_than_the_journal_gives_their_order(study: Path) -> None:
    """A study that was killed before it wrote its table again."""
    clean, table = deltalens.load_study(study), study / "cells.csv"
    rows = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join([rows[0], *rows[3:5], *rows[1:3]]))
    found = cells_of(study)
    assert list(found["rate"][:4]) == [*clean.cells["rate"][2:4], *clean.cells["rate"][:2]]
    assert len(found) == len(clean.cells)
