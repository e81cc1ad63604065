"""A disk that is full at any write of a training: one line, nothing half-made, and it goes on."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deltalens.cli.main import app
from deltalens.errors import DeltaLensError
from deltalens.io.records import TrainingFolder
from deltalens.training.run import TrainingWatch, train
from deltalens.training.spec import TrainingSpec
from tests.support.specs import training_spec

pytestmark = pytest.mark.bad_input

ASKED = training_spec("mft", steps=2, batch_size=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def straight(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "out"
    go(base, rows, out)
    return out


def go(base: Path, rows: Path, out: Path, spec: TrainingSpec = ASKED, **more: Any) -> Any:
    return train(base, rows, out, spec, checkpoint_every=1, **more)


@pytest.fixture
def full() -> Iterator[Callable[[int], None]]:
    """From now on no file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def room_again() -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("size", [0, 3_000, 12_000])
def test_at_the_final_model(
    base: Path, rows: Path, straight: Path, tmp_path: Path, full: Callable[[int], None], size: int
) -> None:
    """The masks, the record, or the weights do not fit."""
    out = tmp_path / "out"

    def fill(name: str, total: int | None) -> None:
        if name == "writing the model":
            full(size)

    with pytest.raises(DeltaLensError, match=r"cannot be written.*(resume|no space|File too)"):
        go(base, rows, out, watch=TrainingWatch(stage=fill))
    room_again()
    assert {found.name for found in out.iterdir()} <= {
        "checkpoints",
        "metrics.jsonl",
        "train.json",
    }
    assert go(base, rows, out, resume=True).finished
    same(out, straight)


def same(out: Path, straight: Path) -> None:
    assert {found.name for found in out.iterdir()} == {found.name for found in straight.iterdir()}
    for name in ("model.safetensors", "metrics.jsonl", "tokenizer.json"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()


CALLS = {
    "tokenizer": (shutil, "copyfileobj"),
    "moving": (os, "replace"),
    "syncing": (os, "fsync"),
}


@pytest.mark.parametrize("call", CALLS)
def test_any_call_of_the_end_fails(
    base: Path,
    rows: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    def fail(*given: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    finish = TrainingFolder.finish

    def failing(folder: TrainingFolder, made: Path, source: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(*CALLS[call], fail)
            finish(folder, made, source)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingFolder, "finish", failing)
        with pytest.raises(DeltaLensError, match=r"[Nn]o space left"):
            go(base, rows, out)
    assert {found.name for found in out.iterdir()} == {"checkpoints", "metrics.jsonl", "train.json"}
    assert go(base, rows, out, resume=True).finished
    same(out, straight)


def test_at_the_metrics(
    base: Path, rows: Path, straight: Path, tmp_path: Path, full: Callable[[int], None]
) -> None:
    out = tmp_path / "out"

    def fill(done: int, total: int) -> None:
        if done == 2:
            full((out / "metrics.jsonl").stat().st_size + 10)

    with pytest.raises(DeltaLensError, match=r"metrics\.jsonl: cannot be written"):
        go(base, rows, out, watch=TrainingWatch(at=fill))
    room_again()
    assert go(base, rows, out, resume=True).finished
    same(out, straight)


@pytest.mark.parametrize("size", [0, 12_000])
def test_a_method_without_steps_leaves_nothing(
    base: Path, rows: Path, tmp_path: Path, full: Callable[[int], None], size: int
) -> None:
    def fill(name: str, total: int | None) -> None:
        if name == "writing the model":
            full(size)

    spec = training_spec("l1-mask")
    with pytest.raises(DeltaLensError, match="cannot be written"):
        go(base, rows, tmp_path / "new" / "out", spec, watch=TrainingWatch(stage=fill))
    room_again()
    assert not (tmp_path / "new").exists()


def test_at_the_record_nothing_is_made(
    base: Path, rows: Path, tmp_path: Path, full: Callable[[int], None]
) -> None:
    command = ["train", "sft", str(base), "--train-data", str(rows), "-o", str(tmp_path / "out")]
    full(0)
    said = CliRunner().invoke(app, [*command, "-q"])
    room_again()
    assert said.exit_code == 2
    (line,) = said.stderr.splitlines()
    assert "train.json: cannot be written" in line
    assert not (tmp_path / "out").exists()
    assert json.loads(rows.read_text().splitlines()[0])
