"""What all folders of records have in common: studies, runs and trainings alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deltalens.errors import DeltaLensError, RecordError
from deltalens.io import files
from deltalens.io.checksum import sealed
from deltalens.io.records import (
    Cell,
    Measurement,
    RunWriter,
    StudyFolder,
    TrainingFolder,
    load_run,
    load_study,
    load_training,
    read_texts,
    write_texts,
)

Begin = Callable[[Path], StudyFolder | RunWriter | TrainingFolder]
ASKED = {"seed": 1}


def study(path: Path) -> StudyFolder:
    return StudyFolder.open(path, "mine", ASKED, ("rate",))


def training(path: Path) -> TrainingFolder:
    return TrainingFolder(path, ASKED, [], resume=False)


def run(path: Path) -> RunWriter:
    return RunWriter(path, ASKED)


BEGIN: dict[str, Begin] = {"study": study, "run": run, "training": training}
READ = {
    "study.json": load_study,
    "run.json": load_run,
    "train.json": load_training,
    "texts.json": read_texts,
}
KINDS = pytest.mark.parametrize("kind", BEGIN)
MANIFESTS = pytest.mark.parametrize("name", READ)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with a manifest of every kind in it."""
    held = study(tmp_path / "study")
    write_texts(held.path, [[1, 2]])
    held.append(Cell({"rate": 0.5}, {"loss": Measurement(1.0)}, 1.0))
    held.close()
    for begin in (run, training):
        begin(tmp_path / begin.__name__).close()
    for name in READ:
        (found,) = tmp_path.glob(f"*/{name}")
        READ[name](found.parent)
    return tmp_path


@MANIFESTS
def test_an_unknown_format_is_refused_with_those_that_are_known(folders: Path, name: str) -> None:
    (file,) = folders.glob(f"*/{name}")
    held = json.loads(file.read_text())
    for format in (99, "2", None, True):
        file.write_text(json.dumps(sealed({**held, "format": format})))
        with pytest.raises(RecordError, match=rf"{name}: format .*reads formats 1 and 2"):
            READ[name](file.parent)


@MANIFESTS
def test_a_manifest_that_is_not_what_was_written_is_refused(folders: Path, name: str) -> None:
    (file,) = folders.glob(f"*/{name}")
    file.write_text(file.read_text().replace('"format"', '"more": 1, "format"', 1))
    with pytest.raises(RecordError, match=f"{name}: damaged: its checksum"):
        READ[name](file.parent)


@MANIFESTS
def test_a_folder_without_a_manifest_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordError, match=rf"contains no \w+ \(there is no {name}\)"):
        READ[name](tmp_path)


@KINDS
def test_one_process_at_a_time_writes_to_a_folder(tmp_path: Path, kind: str) -> None:
    held = BEGIN[kind](tmp_path / "out")
    with pytest.raises(DeltaLensError):
        BEGIN[kind](tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        file.unlink()  # As it is for a moment after the lock was made.
    for folder in (tmp_path / "out").glob("*/"):
        folder.rmdir()
    with pytest.raises(RecordError, match=f"another process is writing to this {kind}"):
        BEGIN[kind](tmp_path / "out")
    held.abandon()
    BEGIN[kind](tmp_path / "out").close()


@KINDS
def test_nothing_stays_of_what_came_to_nothing(tmp_path: Path, kind: str) -> None:
    BEGIN[kind](tmp_path / "a" / "b" / "out").abandon()
    assert not list(tmp_path.iterdir())


@KINDS
def test_folders_that_were_there_before_stay(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a" / "out").mkdir(parents=True)
    BEGIN[kind](tmp_path / "a" / "out").abandon()
    assert [one.relative_to(tmp_path).as_posix() for one in tmp_path.rglob("*")] == ["a", "a/out"]


@KINDS
def test_nothing_stays_where_the_manifest_cannot_be_written(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(DeltaLensError, match="cannot be written: no space left"):
        BEGIN[kind](tmp_path / "a" / "out")
    assert not list(tmp_path.iterdir())


@KINDS
def test_the_lock_goes_with_the_process(folders: Path, kind: str) -> None:
    assert (folders / kind).is_dir()
    assert not list(folders.rglob(".lock"))


@KINDS
def test_what_cannot_be_recorded_is_not_begun(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASKED, "name", "a\udcff")
    with pytest.raises(RecordError, match="not valid Unicode"):
        BEGIN[kind](tmp_path / "out")
    assert not list(tmp_path.iterdir())
