"""What a training goes on from is checked: every file of a checkpoint, the record, the metrics."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deltalens.errors import DeltaLensError
from deltalens.io.records import TrainingFolder
from deltalens.io.records.checkpoints import seal
from deltalens.io.records.metrics import Metrics
from deltalens.io.records.seal import SEAL
from deltalens.training.run import TrainingWatch, train
from deltalens.training.spec import TrainingSpec

pytestmark = pytest.mark.bad_input

ASKED = TrainingSpec(steps=4, batch_size=4, learning_rate=1e-2)


def go(base: Path, rows: Path, out: Path, **more: Any) -> Any:
    return train(base, rows, out, ASKED, checkpoint_every=1, choose_on=rows, **more)


@pytest.fixture(scope="module")
def stopped(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in its fourth step, with the checkpoints of the second and the third."""

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.raises(KeyboardInterrupt):
        go(base, rows, out, watch=TrainingWatch(at=stop))
    return out


@pytest.fixture
def out(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "out"))


def opened(out: Path) -> TrainingFolder:
    """As `train` opens it, without what it takes to load a model."""
    spec = json.loads((out / "train.json").read_text())["asked"]
    folder = TrainingFolder(out, spec, [], resume=True)
    folder.close()
    return folder


def files_of(checkpoint: Path) -> list[str]:
    return sorted(file.name for file in checkpoint.iterdir())


def flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    file.write_bytes(content)


DAMAGE = {
    "a bit": lambda file: flip(file),
    "the first byte": lambda file: flip(file, 0),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "gone": lambda file: file.unlink(),
    "a link": lambda file: (
        file.rename(file.with_name("..moved")),
        file.symlink_to(file.with_name("..moved")),
    ),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_checkpoint_is_named_and_the_older_one_is_taken(
    stopped: Path, tmp_path: Path, damage: str
) -> None:
    names = files_of(stopped / "checkpoints" / "checkpoint-3")
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < {*names}
    for name in names:
        if (name, damage) == (SEAL, "gone"):
            continue
        out = Path(shutil.copytree(stopped, tmp_path / name))
        last = out / "checkpoints" / "checkpoint-3"
        DAMAGE[damage](last / name)
        with pytest.warns(UserWarning, match=r"resumed from checkpoint-2"):
            folder = opened(out)
        assert folder.last is not None
        assert folder.last.step == 2, name
        (note,) = folder.notes
        assert name in note or "moved" in note
        assert not last.exists()
        assert [line["step"] for line in folder.metrics.lines()][-1] == 2


def test_a_checkpoint_without_its_seal_was_cut_short_and_is_passed_over(out: Path) -> None:
    (out / "checkpoints" / "checkpoint-3" / SEAL).unlink()
    folder = opened(out)
    assert folder.last is not None
    assert (folder.last.step, folder.notes) == (2, [])
    assert files_of(out / "checkpoints")[-1] == "checkpoint-2"


def test_the_best_weights_so_far_belong_to_a_checkpoint(out: Path) -> None:
    checkpoints = out / "checkpoints"
    held = json.loads((checkpoints / "checkpoint-3" / SEAL).read_text())
    flip(checkpoints / next(iter(held["about"]["best"])))
    with pytest.warns(UserWarning, match=r"best-3\.safetensors: damaged.*from checkpoint-2"):
        assert opened(out).last.step == 2  # type: ignore[union-attr]


def test_a_file_too_many_and_another_name_are_damage(out: Path) -> None:
    checkpoints = out / "checkpoints"
    shutil.copytree(checkpoints / "checkpoint-2", checkpoints / "checkpoint-40")
    (checkpoints / "checkpoint-3" / "pytorch_model.bin").write_bytes(b"")
    with pytest.warns(UserWarning, match="resumed from checkpoint-2") as told:
        folder = opened(out)
    assert "the seal of checkpoint-2" in folder.notes[0]
    assert "pytorch_model.bin: not a file that was written" in folder.notes[1]
    assert len(told) == 2
    assert folder.last is not None
    assert folder.last.step == 2


def test_no_whole_checkpoint_is_an_error_that_says_what_to_do(
    base: Path, rows: Path, out: Path
) -> None:
    for step in (2, 3):
        flip(out / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(DeltaLensError, match=r"(?s)remove .*/checkpoints and resume.*3/opt.*2/opt"):
        opened(out)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    shutil.rmtree(out / "checkpoints")
    with pytest.warns(UserWarning, match="the training starts over"):
        done = go(base, rows, out, resume=True)
    assert (done.steps, len(done.notes)) == (4, 1)


def test_a_damaged_checkpoint_is_noted_and_the_training_comes_to_the_same(
    base: Path, rows: Path, out: Path, tmp_path: Path
) -> None:
    flip(out / "checkpoints" / "checkpoint-3" / "scheduler.pt")
    with pytest.warns(UserWarning, match="resumed from checkpoint-2"):
        done = go(base, rows, out, resume=True)
    assert "scheduler.pt: damaged" in done.notes[0]
    assert json.loads((out / "train.json").read_text())["facts"]["notes"] == list(done.notes)
    go(base, rows, tmp_path / "straight")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def sealed_again(checkpoint: Path) -> None:
    """As who forges a checkpoint would."""
    held = json.loads((checkpoint / SEAL).read_text())
    about = held["about"]
    best = [checkpoint.parent / name for name in about["best"]]
    seal(checkpoint, about["last"], tuple(about["metrics"]), best[0] if best else None)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_pickle_of_a_checkpoint_is_run(
    base: Path, rows: Path, out: Path, tmp_path: Path, name: str, raw: bool
) -> None:
    """The checksum finds it; and where that was forged, too, what loads it refuses."""
    sprung, last = tmp_path / "sprung", out / "checkpoints" / "checkpoint-3"
    if raw:
        (last / name).write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"state": Trap(sprung)}, last / name)
    if name == "optimizer.pt":
        copied = Path(shutil.copytree(out, tmp_path / "copied"))
        with pytest.warns(UserWarning, match=f"{name}: damaged"):
            opened(copied)
    sealed_again(last)
    assert opened(out).last.step == 3  # type: ignore[union-attr]
    with pytest.raises(DeltaLensError, match=r"(?i)weights.only|unpickl"):
        go(base, rows, out, resume=True)
    assert not sprung.exists()
    assert not (out / "config.json").exists()


def test_weights_in_a_pickle_are_not_read(
    base: Path, rows: Path, out: Path, tmp_path: Path
) -> None:
    sprung, last = tmp_path / "sprung", out / "checkpoints" / "checkpoint-3"
    (last / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Trap(sprung)}, last / "pytorch_model.bin")
    sealed_again(last)
    with pytest.raises(DeltaLensError):
        go(base, rows, out, resume=True)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"facts": {}', '"facts": {"chosen_step": 9}'), "its checksum"),
        (lambda text: text[: len(text) // 2], "train.json"),
        (lambda text: "[]", "train.json"),
        (lambda text: "[" * 100_000, "train.json"),
        (lambda text: "\udc80", "train.json"),
    ],
)
def test_a_damaged_record_is_refused(out: Path, change: Any, message: str) -> None:
    spec = json.loads((out / "train.json").read_text())["asked"]
    text = (out / "train.json").read_text()
    changed = change(text)
    assert changed != text
    (out / "train.json").write_bytes(changed.encode(errors="surrogateescape"))
    with pytest.raises(DeltaLensError, match=message):
        TrainingFolder(out, spec, [], resume=True)
    assert (out / "checkpoints" / "checkpoint-3" / SEAL).exists()


def test_damaged_metrics_are_refused_and_missing_ones_are_noted(out: Path) -> None:
    held = (out / "metrics.jsonl").read_bytes()
    for place in (0.0, 0.1, 0.5):
        flip(out / "metrics.jsonl", place)
        with pytest.raises(
            DeltaLensError, match=r"metrics\.jsonl: damaged: its beginning.*remove it"
        ):
            opened(out)
        (out / "metrics.jsonl").write_bytes(held)
    (out / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: missing"):
        assert opened(out).last.step == 3  # type: ignore[union-attr]


def test_metrics_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    nan, infinity = float("nan"), float("inf")
    metrics.add({"step": 1, "loss": nan})
    metrics.add({"step": 1, "evaluated": {"loss": [-infinity, nan, 3], "nan": [infinity, 0.5, 1]}})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    raw = metrics.file.read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["step"] for line in raw] == [1, 1]
    first, second = metrics.lines()
    assert str(first["loss"]) == "nan"
    assert second["evaluated"]["loss"][0] == -infinity
    assert second["evaluated"]["nan"] == [infinity, 0.5, 1]
    with metrics.file.open("a") as stream:
        stream.write('{"loss": 1}\n')
    with pytest.raises(DeltaLensError, match=r"metrics\.jsonl, line 3: step is missing"):
        metrics.lines()
