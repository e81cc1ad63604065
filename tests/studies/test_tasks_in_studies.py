"""Studies on standard tasks: requests are built once, scores are the harness's own."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import deltalens
from deltalens.scoring.tasks.finding import FILES, LOCAL_FILES
from deltalens.scoring.tasks.scoring import TaskScoring
from deltalens.studies.executors import Execution
from tests.support.checkpoint_pairs import Pair
from tests.support.standard_tasks import (
    count_builds,
    gsm8k_rows,
    write_pair,
    write_rows,
    write_tasks,
)

STRICT, FLEXIBLE = "gsm8k/strict-match/exact_match", "gsm8k/flexible-extract/exact_match"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write_tasks(made / "tasks")
    write_rows(made / "gsm8k.jsonl", gsm8k_rows(60))
    return made


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return write_pair(folder)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return count_builds(monkeypatch)


def choices(folder: Path) -> dict[str, Any]:
    """A task of our own that takes no time."""
    return {"tasks": "choice", "include_path": folder / "tasks"}


def test_a_drop_study_builds_requests_once_and_records_standard_errors(
    folder: Path, pair: Pair, builds: list[str], tmp_path: Path
) -> None:
    study = deltalens.drop_study(
        pair.ft, pair.base, tmp_path / "study", rates="0,0.5,1", seeds=2, **choices(folder)
    )
    assert builds == ["choice"]
    cells = study.cells
    assert {*cells["metric"]} == {"choice/acc", "choice/acc_norm"}
    assert {*cells["n"]} == {8}
    assert (cells["stderr"] > 0).all()
    assert cells["value"].nunique() > 1
    assert study.facts["better"] == {"acc": "higher", "acc_norm": "higher"}
    assert study.facts["notes"] == []


def test_records_say_what_was_saved_and_a_finished_study_keeps_that(
    folder: Path, pair: Pair, tmp_path: Path
) -> None:
    options = {"rates": "0,0.5,1", "strategies": "trivial", **choices(folder)}
    out = tmp_path / "study"
    study = deltalens.drop_study(pair.ft, pair.base, out, **options)
    costs = study.facts["standard_tasks"]
    assert (costs["requests"], costs["cells"]) == (24, 3)
    assert costs["harness_seconds"] > 0
    assert costs["building_seconds"] > 0
    (said,) = [
        text for text in study.summary().splitlines() if "24 requests were built once" in text
    ]
    assert "(median of 3)" in said
    written = (out / "study.json").read_bytes()
    deltalens.drop_study(pair.ft, pair.base, out, **options)
    assert (out / "study.json").read_bytes() == written


def test_what_tasks_take_in_other_processes_is_no_part_of_the_records(
    folder: Path, pair: Pair, tmp_path: Path
) -> None:
    study = deltalens.drop_study(
        pair.ft, pair.base, tmp_path, rates="0,1", strategies="trivial", jobs=2, **choices(folder)
    )
    assert {*study.facts["standard_tasks"]} == {"requests", "building_seconds"}
    assert "24 requests were built once" in study.summary()


def test_a_finished_study_measures_nothing_and_another_task_is_another_study(
    folder: Path, pair: Pair, tmp_path: Path
) -> None:
    options = {"rates": "0,1", "strategies": "trivial", **choices(folder)}
    out = tmp_path / "study"
    first = deltalens.drop_study(pair.ft, pair.base, out, limit=4, **options)
    journal = (out / "cells.jsonl").read_bytes()
    again = deltalens.drop_study(pair.ft, pair.base, out, limit=4, **options)
    assert (out / "cells.jsonl").read_bytes() == journal
    assert again.cells.equals(first.cells)
    with pytest.raises(deltalens.DeltaLensError, match="tasks"):
        deltalens.drop_study(pair.ft, pair.base, out, limit=5, **options)


def test_tables_of_two_processes_are_those_of_one(folder: Path, pair: Pair, tmp_path: Path) -> None:
    options = {"rates": "0,0.5,1", "strategies": "trivial,salient", **choices(folder)}
    for jobs in (1, 2):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / str(jobs), jobs=jobs, **options)
    one, two = ((tmp_path / str(jobs) / "cells.csv").read_bytes() for jobs in (1, 2))
    assert one == two


def test_tasks_stand_beside_rows_and_metrics_choose_among_them(
    folder: Path, pair: Pair, tmp_path: Path
) -> None:
    study = deltalens.sweep_layers_drop(
        pair.ft,
        pair.base,
        tmp_path / "study",
        data=write_rows(tmp_path / "rows.jsonl", [{"prompt": "so", "completion": " it is"}]),
        metrics="loss,choice/acc",
        **choices(folder),
    )
    assert {*study.cells["metric"]} == {"loss", "choice/acc"}
    assert any("standard tasks generate" in note for note in study.facts["notes"])
    # The model in which all groups are the fine-tune's is the drop study's at rate 0.
    dropped = deltalens.drop_study(
        pair.ft, pair.base, tmp_path / "drops", rates="0,1", strategies="trivial", **choices(folder)
    )
    layers, rates = (
        each.cells[each.cells["metric"] == "choice/acc"].set_index(key)["value"]
        for each, key in ((study, "method"), (dropped, "rate"))
    )
    assert (layers["ft"], layers["base"]) == (rates[0.0], rates[1.0])


def test_a_landscape_of_a_task(folder: Path, pair: Pair, tmp_path: Path) -> None:
    study = deltalens.scan_landscape(
        pair.ft, tmp_path / "study", [pair.base], grid=3, metrics="acc", **choices(folder)
    )
    assert {(data, metric) for data, metric in study.cells[["data", "metric"]].to_numpy()} == {
        ("choice", "acc")
    }


def test_trainings_are_measured_on_tasks_alone(
    folder: Path, pair: Pair, builds: list[str], tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "so", "completion": " it is"}] * 8)
    study = deltalens.compare(
        "sft", pair.ft, rows, tmp_path / "study", seeds=1, steps=2, task_limit=4, **choices(folder)
    )
    assert builds == ["choice"]
    measured = {(method, metric) for method, metric in study.cells[["method", "metric"]].to_numpy()}
    assert {("ft", "choice/acc"), ("sft", "choice/acc")} <= measured


def test_every_study_names_the_files_of_its_tasks_for_workers_elsewhere(
    folder: Path, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[set[Path]] = []

    def executor(recipe: Any, *_: Any) -> Any:
        named.append({*recipe.paths})
        raise KeyboardInterrupt

    monkeypatch.setattr(Execution, "find", lambda self: executor)
    gsm8k = folder / "gsm8k.jsonl"
    options = {"tasks": f"choice,gsm8k={gsm8k}", "include_path": folder / "tasks"}
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "so", "completion": " it is"}] * 8)
    both = (pair.ft, pair.base)
    for study in (
        partial(deltalens.drop_study, *both, tmp_path / "drop", rates="0", limit=2),
        partial(deltalens.sweep_layers_drop, *both, tmp_path / "layers", limit=2),
        partial(deltalens.scan_landscape, pair.ft, tmp_path / "plane", both[1:], grid=3, limit=2),
        partial(deltalens.evaluate, pair.ft, tmp_path / "evaluate", limit=2),
        partial(deltalens.compare, "sft", pair.ft, rows, tmp_path / "compare", task_limit=2),
    ):
        with pytest.raises(KeyboardInterrupt):
            study(**options)
    files = {folder / "tasks" / "choice.yaml", folder / "tasks" / "rows.jsonl", gsm8k}
    assert [files - paths for paths in named] == [set()] * 5


def test_a_training_that_others_are_made_from_is_not_measured_again(
    folder: Path, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that prompts are cut is in the study's notes."""
    short = write_pair(tmp_path / "short", positions=400).base
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "so", "completion": " it is"}] * 8)
    out, measured = tmp_path / "study", []
    measure = TaskScoring.measure

    def counted(self: TaskScoring, model: Any, report: Any) -> Any:
        measured.append(model)
        return measure(self, model, report)

    monkeypatch.setattr(TaskScoring, "measure", counted)
    tasks = {"tasks": f"gsm8k={folder / 'gsm8k.jsonl'}", "task_limit": 1}
    for methods in ("sft", "sft,one-off-drop"):
        measured.clear()
        study = deltalens.sweep_mask_ratio(
            methods, short, rows, out, mask_ratios="0.5", seeds=1, steps=1, **tasks
        )
        assert len(measured) == 1
    assert any("prompts are longer" in note for note in study.facts["notes"])


def test_options_of_tasks_without_tasks_are_refused_by_their_own_names(
    pair: Pair, tmp_path: Path
) -> None:
    for name in ("task_limit", "task_batch_size"):
        with pytest.raises(deltalens.DeltaLensError, match=f"{name}: of no use without `tasks`"):
            deltalens.compare("sft", pair.ft, "rows", tmp_path, eval_data="rows", **{name: 4})


def test_an_evaluation_has_no_note_that_depends_on_the_process(
    folder: Path, pair: Pair, tmp_path: Path
) -> None:
    study = deltalens.evaluate([pair.ft, pair.base], tmp_path / "study", **choices(folder))
    assert study.facts["notes"] == []
    assert {*study.cells["model"]} == {str(pair.ft), str(pair.base)}


@pytest.mark.slow
@pytest.mark.parity
def test_scores_are_those_of_the_harness_s_command_on_the_saved_model(
    folder: Path, pair: Pair, builds: list[str], tmp_path: Path
) -> None:
    file, cell = folder / "gsm8k.jsonl", tmp_path / "cell"
    study = deltalens.drop_study(
        pair.ft,
        pair.base,
        tmp_path / "study",
        tasks=f"gsm8k={file}",
        limit=50,
        batch_size=10,
        rates="0,0.7,1",
        strategies="trivial",
    )
    assert builds == ["gsm8k"]
    deltalens.drop(pair.ft, pair.base, cell, strategy="trivial", rate=0.7)
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={cell}"),
        *("--tasks", "gsm8k", "--include_path", str(FILES), "--limit", "50", "--device", "cpu"),
        *("--metadata", json.dumps({LOCAL_FILES: {"gsm8k": [str(file)]}}), "--batch_size", "10"),
        *("--output_path", str(tmp_path / "results")),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (written,) = (tmp_path / "results").rglob("*.json")
    theirs = json.loads(written.read_text(encoding="utf-8"))["results"]["gsm8k"]
    ours = study.cells[study.cells["rate"] == 0.7].set_index("metric")
    for metric, key in ((STRICT, "strict-match"), (FLEXIBLE, "flexible-extract")):
        assert ours.loc[metric, "value"] == theirs[f"exact_match,{key}"]
        assert ours.loc[metric, "stderr"] == theirs[f"exact_match_stderr,{key}"]
    assert ours.loc[STRICT, "value"] > 0
