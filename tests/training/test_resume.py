"""A training that was killed at any moment goes on to what it would have come to."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from deltalens.errors import DeltaLensError
from deltalens.io.records import TrainingFolder
from deltalens.training import run
from deltalens.training.run import Trained, train
from deltalens.training.spec import TrainingSpec
from tests.support.models import bert, initialized, save
from tests.support.specs import training_spec
from tests.support.training_folders import comparisons, write_rows

pytestmark = pytest.mark.resume

RESULT = ("model.safetensors", "metrics.jsonl", "config.json", "tokenizer.json")


def spec(**more: Any) -> TrainingSpec:
    # At a constant rate a step too many is seen.
    given = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0}
    return training_spec(**{**given, "recipe": {"lr_scheduler_type": "constant"}, **more})


def came_to(folder: Path) -> dict[str, Any]:
    """To the byte; of masks all that they say, as safetensors writes metadata in any order."""
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in RESULT}
    if (file := folder / "masks.safetensors").exists():
        with safe_open(file, "numpy") as held:
            found["masks"] = held.metadata(), held.get_tensor("kept").tobytes()
    for kept in folder.glob("checkpoint-*"):
        found |= {f"{kept.name}/{file.name}": file.read_bytes() for file in kept.iterdir()}
    if (adapter := folder / "adapter").exists():
        tensors = load_file(next(adapter.glob("*.safetensors")))
        found["adapter"] = {name: each.numpy().tobytes() for name, each in tensors.items()}
    return found


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, which gets its head and pooler in the training."""
    return save(initialized(lambda: bert(False), 0), tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs of sentences with labels."""
    return write_rows(tmp_path_factory.mktemp("labeled") / "rows.jsonl", comparisons())


Photograph = Callable[[str], None]
"""Keep what a kill would leave now, under a name."""


@pytest.fixture
def photographed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What the folder `out` held at moments of a training that was not killed."""
    out, kept = tmp_path / "out", tmp_path / "kept"

    def photograph(moment: str) -> None:
        if not (kept / moment).exists():
            shutil.copytree(out, kept / moment, symlinks=True)

    def before(owner: Any, name: str, moment: Callable[..., str | None]) -> None:
        original = getattr(owner, name)

        def wrapped(*given: Any, **more: Any) -> Any:
            if (named := moment(*given)) is not None and out.exists():
                photograph(named)
            return original(*given, **more)

        monkeypatch.setattr(owner, name, wrapped)

    def writes_model(folder: TrainingFolder, made: Path, source: Path) -> str:
        return "model written"

    def evaluates(training: Any, step: int) -> str | None:
        return "final evaluation" if step == 4 else None

    def moves(source: Any, target: Any) -> str | None:
        if Path(target) == out / "checkpoint-4":
            return "checkpoint 4 not kept"
        if os.path.dirname(source) != str(out / ".model"):
            return None
        return "half moved" if Path(target).name == "config.json" else "nothing moved"

    def seals(folder: TrainingFolder, step: int, *rest: Any) -> str:
        return f"checkpoint {step} unsealed"

    before(run.TrainingSession, "prepare", lambda *given: "before the first step")
    before(run.TrainingSession, "evaluate", evaluates)
    before(TrainingFolder, "finish", writes_model)
    before(TrainingFolder, "complete", seals)
    before(os, "replace", lambda source, target: moves(str(source), target))
    return kept


CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "sft": ({}, False),
    "masks and choice": ({"method": "mft"}, True),
    "epochs": ({"steps": None, "epochs": 0.35}, False),
    "gmt": ({"method": "gmt", "mask_ratio": "0.5"}, False),
    "lora": ({"method": "lora", "lora_rank": 2}, False),
    "sparse": ({"method": "speft", "density": "0.1"}, False),
    "renewed masks and choice": ({"method": "speft", "density": "0.1", "refresh_every": 2}, True),
}
MOMENTS = (
    "before the first step",
    "checkpoint 2 unsealed",
    "checkpoint 4 not kept",
    "checkpoint 4 unsealed",
    "final evaluation",
    "model written",
    "nothing moved",
    "half moved",
)


def test_killed_in_the_final_evaluation_no_step_is_left_to_take(
    base: Path, rows: Path, tmp_path: Path, photographed: Path
) -> None:
    check(base, rows, tmp_path, photographed, "masks and choice", ["final evaluation"])


@pytest.mark.parametrize("case", ["lora", "masks and choice"])
def test_a_new_head_goes_on_where_the_training_was_killed(
    encoder: Path, labeled: Path, tmp_path: Path, photographed: Path, case: str
) -> None:
    chosen = ["before the first step", "checkpoint 4 not kept", "checkpoint 4 unsealed"]
    check(encoder, labeled, tmp_path, photographed, case, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_new_head_killed_anywhere_comes_to_the_same(
    encoder: Path, labeled: Path, tmp_path: Path, photographed: Path, case: str
) -> None:
    check(encoder, labeled, tmp_path, photographed, case, MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_anywhere_it_comes_to_the_same(
    base: Path, rows: Path, tmp_path: Path, photographed: Path, case: str
) -> None:
    check(base, rows, tmp_path, photographed, case, MOMENTS)


def check(
    base: Path, rows: Path, tmp_path: Path, photographed: Path, case: str, chosen: Sequence[str]
) -> None:
    """Weights, masks and metrics are the same, to the byte; and nothing is left."""
    own, choosing = CASES[case]
    more: dict[str, Any] = {"choose_on": rows, "eval_every": 1} if choosing else {}
    more |= {"checkpoint_every": 2, "keep_checkpoints": True}

    def go(out: Path, **how: Any) -> Trained:
        return train(base, rows, out, spec(**own), eval_data=[rows], **more, **how)

    straight = go(tmp_path / "out")
    wanted = came_to(tmp_path / "out")
    assert {found.name for found in photographed.iterdir()} == {*MOMENTS}
    for moment in chosen:
        out = photographed / moment
        done = go(out, resume=True)
        assert came_to(out) == wanted, moment
        assert (done.steps, done.finished, done.loss) == (4, True, straight.loss), moment
        assert done.metrics == straight.metrics, moment
        left = {found.name for found in out.iterdir()}
        assert left == {found.name for found in (tmp_path / "out").iterdir()}, moment
        facts = [
            json.loads((one / "train.json").read_text())["facts"] for one in (out, tmp_path / "out")
        ]
        assert facts[0].get("chosen_step") == facts[1].get("chosen_step")


def test_killed_once_all_is_there_it_is_tidied(base: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(base, rows, out, spec(steps=1))
    wanted = came_to(out)
    (out / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (out / ".lock").touch()
    (out / ".model").mkdir()
    with pytest.raises(DeltaLensError, match="finished"):
        train(base, rows, out, spec(steps=1), resume=True)
    assert came_to(out) == wanted
    assert not {"checkpoints", ".lock", ".model"} & {found.name for found in out.iterdir()}


@pytest.mark.parametrize("resume", [False, True])
def test_killed_before_anything_was_written(
    base: Path, rows: Path, tmp_path: Path, resume: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".train.json.0badcafe-1-00.part").write_text("{")
    assert train(base, rows, out, spec(steps=1), resume=resume).finished
    assert not (out / ".lock").exists()
