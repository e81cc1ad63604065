"""`deltalens evaluate`: several models on the same data, each loaded once."""

from __future__ import annotations

import json
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import deltalens
from deltalens.errors import RecordError
from deltalens.io.records import Cell
from deltalens.scoring import loading
from deltalens.scoring.rows import read_rows
from deltalens.scoring.suite import Suite
from deltalens.studies.engine import StudyWatch
from tests.support.models import demo_llama, initialized, save, tokenizer
from tests.support.runs import command, succeeds
from tests.support.training_folders import write_model, write_rows

STEPS = (4, 8, 12)
NAMES = [f"checkpoint-{step}" for step in STEPS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, rows, and a training of it with all checkpoints."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_model(folder / "base")
    write_rows(folder / "rows.jsonl")
    kept = {"checkpoint_every": 4, "keep_checkpoints": True, "learning_rate": 1e-2}
    rows = folder / "rows.jsonl"
    deltalens.train("sft", folder / "base", rows, folder / "runs" / "a", steps=12, **kept)
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each folder is loaded as a model."""
    counted: Counter[str] = Counter()
    load_model = loading.load_model

    def counting(checkpoint: Any, *given: Any, **more: Any) -> Any:
        counted[checkpoint.path.name] += 1
        return load_model(checkpoint, *given, **more)

    monkeypatch.setattr(loading, "load_model", counting)
    return counted


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the folder of it all, as at a prompt."""
    monkeypatch.chdir(made)
    return made


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "cells.csv")


def test_checkpoints_of_a_training_give_one_table_and_one_picture(
    here: Path, tmp_path: Path, loads: Counter[str]
) -> None:
    models = [f"runs/a/{name}" for name in reversed(NAMES)]
    out = tmp_path / "study"
    said = succeeds("evaluate", *models, "--data", "rows.jsonl", "-o", out)
    assert loads == dict.fromkeys(NAMES, 1)
    assert sorted(file.name for file in out.iterdir()) == [
        *("cells.csv", "cells.jsonl", "evaluation.png", "evaluation.svg", "study.json"),
    ]
    cells = table(out)
    losses = cells[cells["metric"] == "loss"]
    assert losses["model"].tolist() == [f"runs/a/{name}" for name in NAMES]
    assert losses["step"].tolist() == [*STEPS]
    assert set(losses["training"]) == {"runs/a"}
    assert (losses["stderr"] > 0).all()
    assert "runs/a: loss" in said


def test_each_model_has_the_numbers_of_the_suite_alone(here: Path, tmp_path: Path) -> None:
    """With its own tokenizer and in its own dtype."""
    save(initialized(lambda: demo_llama(torch.bfloat16), 3), tmp_path / "other", tokens=tokenizer())
    folders = [Path("base"), tmp_path / "other"]
    study = deltalens.evaluate(folders, tmp_path / "study", data="rows.jsonl")
    for folder, dtype in zip(folders, (torch.float32, torch.bfloat16), strict=True):
        checkpoint = deltalens.open_checkpoint(folder)
        loaded = loading.load_model(checkpoint, dtype, torch.device("cpu"))
        scoring = Suite().scoring(read_rows("rows.jsonl"), loaded.model, loaded.tokenizer)
        own = study.cells[study.cells["model"] == str(folder)].set_index("metric")
        for name, measured in scoring.measure(loaded.model).items():
            assert tuple(own.loc[name, ["value", "stderr", "n"]]) == tuple(measured), name


def test_an_interrupted_study_goes_on_and_loads_nothing_again(
    here: Path, tmp_path: Path, loads: Counter[str]
) -> None:
    models = [f"runs/a/{name}" for name in NAMES]
    straight = deltalens.evaluate(models, tmp_path / "straight", data="rows.jsonl")
    loads.clear()

    def stop(folder: Path, cell: Cell) -> None:
        if cell.setting["step"] == 8:
            raise KeyboardInterrupt

    out = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        deltalens.evaluate(models, out, data="rows.jsonl", watch=StudyWatch(on_cell=stop))
    deltalens.evaluate(models, out, data="rows.jsonl")
    assert loads == dict.fromkeys(NAMES, 1)
    for name in ("cells.csv", "study.json"):
        assert (out / name).read_bytes() == (straight.path / name).read_bytes(), name


def test_more_models_are_added_and_the_folder_is_that_of_one_call(
    here: Path, tmp_path: Path, loads: Counter[str]
) -> None:
    models = [f"runs/a/{name}" for name in NAMES]
    out = tmp_path / "grown"
    deltalens.evaluate(models[1:], out, data="rows.jsonl")
    grown = deltalens.evaluate(["base", models[0]], out, data="rows.jsonl")
    assert loads == {**dict.fromkeys(NAMES, 1), "base": 1}
    once = deltalens.evaluate([*models, "base"], tmp_path / "once", data="rows.jsonl")
    for name in ("cells.csv", "study.json"):
        assert (grown.path / name).read_bytes() == (once.path / name).read_bytes(), name


def test_a_note_is_said_once_of_all_models_and_else_by_name(here: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "1" * 60, "completion": "2" * 90}, {"prompt": "1+1=", "completion": "2"}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    longer = initialized(demo_llama, 1)
    longer.config.max_position_embeddings = 512
    save(longer, tmp_path / "longer", tokens=tokenizer())
    out = tmp_path / "study"
    one = deltalens.evaluate("base", out, data=data)
    assert one.facts["notes"] == [
        "base: rows.jsonl: 1 rows left out: they are too long, or have no token to predict"
    ]
    two = deltalens.evaluate("runs/a", out, data=data)
    assert [note.split(":")[0] for note in two.facts["notes"]] == ["rows.jsonl"]
    three = deltalens.evaluate(tmp_path / "longer", out, data=data)
    assert [note.split(":")[0] for note in three.facts["notes"]] == ["base, runs/a"]


def test_processes_give_the_same_table(here: Path, tmp_path: Path) -> None:
    models = ["base", *(f"runs/a/{name}" for name in NAMES)]
    tables = []
    for jobs in (1, 2):
        study = deltalens.evaluate(models, tmp_path / str(jobs), data="rows.jsonl", jobs=jobs)
        tables.append((study.path / "cells.csv").read_bytes())
    assert tables[0] == tables[1]


def test_the_same_weights_are_measured_once(
    here: Path, tmp_path: Path, loads: Counter[str]
) -> None:
    """A training's result is its last checkpoint; `./base` is `base`."""
    models = ["runs/a/checkpoint-12", "runs/a", "base/", "./base"]
    study = deltalens.evaluate(models, tmp_path / "study", data="rows.jsonl")
    assert sum(loads.values()) == 2
    losses = study.cells[study.cells["metric"] == "loss"].set_index("model")
    assert losses.loc["runs/a", "value"] == losses.loc["runs/a/checkpoint-12", "value"]
    assert losses.loc["runs/a", ["training", "step"]].tolist() == ["runs/a", 12]
    assert losses.index.tolist() == ["base", "runs/a", "runs/a/checkpoint-12"]


def test_a_name_that_stands_for_another_model_now_is_refused(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(here / "runs/a/checkpoint-4", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    rows = here / "rows.jsonl"
    deltalens.evaluate("model", "study", data=rows)
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(here / "runs/a/checkpoint-8", tmp_path / "model")
    with pytest.raises(RecordError, match=r"holds another study(.|\n)*models\.model\.weights"):
        deltalens.evaluate("model", "study", data=rows)


def test_a_model_that_diverged_is_a_gap_and_not_the_end(here: Path, tmp_path: Path) -> None:
    broken = demo_llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    for file in here.glob("base/tokenizer*"):
        shutil.copy(file, tmp_path / "broken")
    models = ["base", tmp_path / "broken"]
    study = deltalens.evaluate(models, tmp_path / "study", data="rows.jsonl", metrics="loss")
    name = str(tmp_path / "broken")
    assert study.cells["value"].isna().tolist() == [name in one for one in study.cells["model"]]
    assert f"note: {name}: not finite: loss" in study.summary()
    assert f"not finite are left out: {name}" in study.summary()


def break_model(folder: Path) -> Path:
    """A copy of the base whose configuration does not fit its tensors."""
    shutil.copytree("base", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("jobs", [1, 2])
def test_models_that_cannot_be_loaded_fail_alone(here: Path, tmp_path: Path, jobs: int) -> None:
    """No model is the reference of the others: not even the first."""
    broken = [break_model(tmp_path / name) for name in ("a", "b")]
    out = tmp_path / "study"
    typed = ["evaluate", *broken, "base", "--data", "rows.jsonl", "-o", out, "--jobs", jobs]
    done = command(*typed, "--json")
    assert done.exit_code == 3
    failed = json.loads(done.stdout)["failed"]
    assert [each["setting"]["model"] for each in failed] == [str(each) for each in broken]
    assert set(table(out)["model"]) == {"base"}
    for each in broken:  # Put right, it is another model under the same name.
        shutil.copy("base/config.json", each)
    assert command(*typed).exit_code == 0
    assert set(table(out)["model"]) == {"base", *map(str, broken)}


def test_an_evaluation_of_which_nothing_can_be_measured_is_an_error(
    here: Path, tmp_path: Path
) -> None:
    broken = break_model(tmp_path / "a")
    with pytest.raises(deltalens.DeltaLensError, match="config"):
        deltalens.evaluate(broken, tmp_path / "study", data="rows.jsonl")


def test_a_model_that_failed_is_released_before_the_next_is_loaded(
    here: Path, tmp_path: Path
) -> None:
    alive: list[weakref.ref[Any]] = []

    def metric(model: Any) -> float:
        alive.append(weakref.ref(model))
        if len(alive) == 1:
            raise ValueError("not this one")
        assert alive[0]() is None
        return 1.0

    models = ["base", "runs/a/checkpoint-4"]
    study = deltalens.evaluate(models, tmp_path / "study", metric=metric, version=1)
    assert [failure.setting["model"] for failure in study.failures] == ["base"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["base"], "nothing to measure: name --data"),
        (["base", "--data", "rows.jsonl", "--metrics", "kl"], "`drop-study` measures"),
        (["base", "--data", "rows.jsonl", "--metrics", "speed"], "'speed' cannot be measured"),
        (["nowhere", "--data", "rows.jsonl"], "nowhere: no such file or folder"),
        (["base/model.safetensors", "--data", "rows.jsonl"], "a folder with a config.json"),
        (["rows.jsonl", "--data", "rows.jsonl"], "rows.jsonl"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_a_model_is_loaded(
    here: Path, tmp_path: Path, loads: Counter[str], typed: list[str], message: str
) -> None:
    done = command("evaluate", *typed, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 2
    assert message in json.loads(done.stdout)["error"]["message"]
    assert not loads
    assert not (tmp_path / "out").exists()
