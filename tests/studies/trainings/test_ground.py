"""What a stopped study keeps for the cells to come is checked before it is built on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import DeltaLensError
from deltalens.io.records import Cell, StudyRecord
from deltalens.studies import cell_maker
from deltalens.studies.engine import StudyWatch
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.training_plans import TrainingData
from tests.support.specs import run_study
from tests.support.training_folders import write_model, write_rows

pytestmark = pytest.mark.resume


def sweep(place: Path, out: Path, **more: Any) -> StudyRecord:
    rows = place / "rows.jsonl"
    source = TrainingData(model=place / "base", data=rows, eval_data=[rows])
    how: dict[str, Any] = {"mask_ratios": "0.5", "seeds": 1, "keep_checkpoints": True, **more}
    shared = {"steps": 2, "batch_size": 8, "learning_rate": 1e-2}
    return run_study(sweep_mask_ratio, "one-off-drop", source, out, shared, **how)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "base")
    write_rows(folder / "rows.jsonl")
    sweep(folder, folder / "whole")
    return folder


@pytest.fixture(scope="module")
def once(place: Path) -> Path:
    """After the plain training, whose result the drop takes."""

    def stop(folder: Path, cell: Cell) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(place, place / "study", watch=StudyWatch(on_cell=stop))
    assert (place / "study" / ".ground" / "sft-seed-0" / "model.safetensors").exists()
    return place / "study"


@pytest.fixture
def stopped(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "study"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def gone(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [flip, gone])
def test_a_damaged_ground_is_made_anew_and_named(
    place: Path, stopped: Path, damage: Callable[[Path], None]
) -> None:
    damage(stopped / ".ground" / "sft-seed-0" / "model.safetensors")
    record = sweep(place, stopped)
    assert (stopped / "cells.csv").read_bytes() == (place / "whole" / "cells.csv").read_bytes()
    (note,) = record.facts["notes"]
    assert "sft-seed-0/model.safetensors" in note
    assert note.endswith("trained again")
    assert not (stopped / ".ground").exists()


def test_a_whole_one_is_taken(place: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*given: Any, **more: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cell_maker, "train", train)
    record = sweep(place, stopped)
    assert (stopped / "cells.csv").read_bytes() == (place / "whole" / "cells.csv").read_bytes()
    assert not record.facts.get("notes")


@pytest.mark.parametrize("name", [".ground", "checkpoints", ".notes"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.timeout(60)
def test_links_and_pipes_are_not_followed(
    place: Path, stopped: Path, tmp_path: Path, name: str, kind: str
) -> None:
    mine = tmp_path / "mine"
    (mine / "sft-seed-0").mkdir(parents=True)
    at = stopped / name
    if at.exists():
        at.rename(tmp_path / "moved")
    if kind == "pipe":
        os.mkfifo(at)
    else:
        at.symlink_to(mine)
    with pytest.raises(DeltaLensError, match=name):
        sweep(place, stopped)
    assert [file.name for file in mine.rglob("*")] == ["sft-seed-0"]
