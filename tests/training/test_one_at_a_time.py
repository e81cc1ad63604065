"""One process at a time writes to a training's folder, or to a run's; and it follows no link."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import DeltaLensError
from deltalens.io import locks
from deltalens.io.locks import lock_folder, unlock_folder
from deltalens.io.records import RunWriter, TrainingFolder
from deltalens.training.run import TrainingWatch, train
from tests.training.test_train import spec


def test_two_trainings_do_not_meet_in_a_folder(base: Path, rows: Path, tmp_path: Path) -> None:
    """Whenever the second one comes, nothing of the first one is lost."""
    out, refused = tmp_path / "out", []

    def another(resume: bool) -> None:
        given = spec(steps=2) if resume else spec(method="gmt", steps=2)
        before = sorted(found.name for found in out.iterdir())
        with pytest.raises(DeltaLensError) as told:
            train(base, rows, out, given, resume=resume)
        refused.append(str(told.value))
        assert sorted(found.name for found in out.iterdir()) == before

    def stage(name: str, total: int | None) -> None:
        if name == "loading the model":
            another(resume=True)

    def at(done: int, total: int) -> None:
        another(resume=done == 2)

    done = train(base, rows, out, spec(steps=2), watch=TrainingWatch(stage=stage, at=at))
    assert done.finished
    assert len(refused) == 3
    assert f"{out}: another process is writing to this training" in refused[0]
    assert "already contains a training" in refused[1]
    assert "another process" in refused[2]
    assert not (out / ".lock").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_of_many_that_begin_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    won: list[TrainingFolder] = []
    lost: list[str] = []
    ready = threading.Barrier(8)

    def begin(number: int) -> None:
        ready.wait()
        try:
            won.append(TrainingFolder(tmp_path / "out", {"number": number}, [], resume=False))
        except DeltaLensError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,) = won
    assert len(lost) == 7
    assert json.loads((tmp_path / "out" / "train.json").read_text())["asked"] == one.spec
    one.close()
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_lock_that_is_removed_is_never_held_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opened the file before it was removed would hold a lock that nobody else sees."""
    first, third = lock_folder(tmp_path, "training"), []
    really = locks.lock

    def late(descriptor: int) -> bool:
        if not third:
            monkeypatch.undo()
            unlock_folder(tmp_path, first)
            third.append(lock_folder(tmp_path, "training"))
        return really(descriptor)

    monkeypatch.setattr(locks, "lock", late)
    with pytest.raises(DeltaLensError, match="another process is writing to this training"):
        lock_folder(tmp_path, "training")
    unlock_folder(tmp_path, third[0])
    assert not list(tmp_path.iterdir())


def test_two_probes_do_not_meet_in_a_run(tmp_path: Path) -> None:
    first = RunWriter(tmp_path / "run", {})
    (tmp_path / "run" / "run.json").unlink()
    for name in ("histograms", "tensors", "masks", "learned"):
        (tmp_path / "run" / name).rmdir()
    with pytest.raises(DeltaLensError, match="another process is writing to this run"):
        RunWriter(tmp_path / "run", {})
    first.abandon()
    assert not (tmp_path / "run").exists()
    RunWriter(tmp_path / "run", {}).close()
    assert not (tmp_path / "run" / ".lock").exists()
    with pytest.raises(DeltaLensError, match="contains another run"):
        RunWriter(tmp_path / "run", {})


@pytest.fixture
def interrupted(base: Path, rows: Path, tmp_path: Path) -> Path:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            base,
            rows,
            tmp_path / "out",
            spec(steps=3),
            checkpoint_every=1,
            watch=TrainingWatch(at=stop),
        )
    return tmp_path / "out"


LINKED = ("checkpoints", "run", "run-from-1", "metrics.jsonl", "train.json", ".lock", ".model")
BELOW = ("checkpoint-2", "checkpoint-9", "README.md", "best-1.safetensors", "runs")


@pytest.mark.timeout(120)
def test_links_pipes_and_devices_are_refused(
    interrupted: Path, tmp_path: Path, base: Path, rows: Path
) -> None:
    for name in (*LINKED, *(f"checkpoints/{one}" for one in BELOW)):
        for kind in ("link", "nowhere", "pipe"):
            mine = tmp_path / "mine"
            shutil.rmtree(mine, ignore_errors=True)
            mine.mkdir()
            (mine / "file").write_text("mine")
            out = Path(shutil.copytree(interrupted, tmp_path / "copy", symlinks=True))
            put(out / name, kind, mine)
            with pytest.raises(DeltaLensError, match=Path(name).name):
                train(base, rows, out, spec(steps=3), checkpoint_every=1, resume=True)
            assert [found.name for found in mine.iterdir()] == ["file"]
            assert (mine / "file").read_text() == "mine"
            assert os.path.lexists(out / "checkpoints")
            shutil.rmtree(out)


def put(place: Path, kind: str, mine: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(mine if kind == "link" else mine / "nowhere")


def test_what_failed_takes_away_only_what_it_made(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def stage(name: str, total: int | None) -> None:
        if name == "tokenizing":
            (out / "mine.txt").write_text("mine")
            (out / "checkpoints" / "mine.txt").write_text("mine")
            (out / "runs").mkdir()

    bad: dict[str, Any] = {"recipe": {"optim": "fastest"}}
    with pytest.raises(DeltaLensError, match="fastest"):
        train(base, rows, out, spec(**bad), watch=TrainingWatch(stage=stage))
    left = sorted(str(found.relative_to(out)) for found in out.rglob("*"))
    assert left == ["checkpoints", "checkpoints/mine.txt", "mine.txt", "runs"]
