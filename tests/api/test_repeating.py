"""The commands that a report shows make what it shows again."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

import deltalens
from deltalens.api.repeating import repeat_of
from deltalens.io.records import load_run, load_study, load_training
from tests.architecture.commands import fault_in
from tests.support.finished_studies import KINDS, make_study
from tests.support.nasty import NAME
from tests.support.records_of_runs import make_run, make_training
from tests.support.runs import succeeds


def words_of(command: str) -> list[str]:
    first, *words = shlex.split(command)
    assert first == "deltalens"
    return words


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_can_be_typed(tmp_path: Path, kind: str) -> None:
    found = repeat_of(load_study(make_study(tmp_path / "study", kind)))
    assert found is not None
    assert fault_in(words_of(found.command)) is None


def test_a_trainings_command_can_be_typed(tmp_path: Path) -> None:
    for method in ("sft", "gmt", "mft", "speft", "lora"):
        found = repeat_of(load_training(make_training(tmp_path / method, method)))
        assert found is not None
        assert words_of(found.command)[:2] == ["train", method]
        assert fault_in(words_of(found.command)) is None


def test_a_run_is_repeated_in_python(tmp_path: Path) -> None:
    found = repeat_of(load_run(make_run(tmp_path / "run")))
    assert found is not None
    compile(found.command, "command", "exec")
    assert "every=10, mask_ratios=(0.5,)" in found.command


def test_it_says_where_paths_have_to_be_put_in(tmp_path: Path) -> None:
    found = repeat_of(load_training(make_training(tmp_path / "t")))
    assert found is not None
    for said in ("train (64 rows, fingerprint eba43758)", "test (9 rows, fingerprint ce70)"):
        assert said in found.notes[0]


def test_a_name_is_one_word(tmp_path: Path) -> None:
    found = repeat_of(load_training(make_training(tmp_path / "t", model=f"{NAME}; rm -rf x")))
    assert found is not None
    assert f"{NAME}; rm -rf x" in words_of(found.command)


def test_an_option_at_its_default_is_not_typed(tmp_path: Path) -> None:
    found = repeat_of(load_study(make_study(tmp_path / "study", "drop-study")))
    assert found is not None
    assert not {"--scope", "--rescale", "--batch-tokens", "--include"} & {*words_of(found.command)}


def test_the_command_of_a_drop_study_is_the_same_study(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo / "study", tmp_path / "study"))
    found = repeat_of(deltalens.load_study(folder))
    assert found is not None
    before = (folder / "cells.csv").read_bytes()
    words = [str(demo / word) if word == "test.jsonl" else word for word in words_of(found.command)]
    # Another study in the folder would be refused.
    succeeds(*words, "-q")
    assert (folder / "cells.csv").read_bytes() == before
