"""Tasks that do not exist, cannot be loaded, or may not run are refused, with what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.scoring.loading import load_model
from deltalens.scoring.suite import read_suite
from deltalens.scoring.tasks.scoring import StandardTasks, TaskScoring
from deltalens.scoring.tasks.selection import TaskSelection
from deltalens.scoring.texts import FidelityTexts
from tests.support.models import initialized, save, tiny
from tests.support.standard_tasks import (
    gsm8k_rows,
    mbpp_rows,
    write_pair,
    write_rows,
    write_tasks,
)

pytestmark = pytest.mark.bad_input


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("bad") / "tasks")


def tasks_of(*names: str, **options: Any) -> StandardTasks:
    selection = TaskSelection.of(names, **options)
    assert selection is not None
    return StandardTasks(selection)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["a="], {}, "write NAME, NAME=FILE"),
        (["a=b:c:d"], {}, "write NAME, NAME=FILE"),
        (["gsm8k=nowhere.jsonl"], {}, "nowhere.jsonl: no such file"),
        (["a", "b", "a"], {}, "more than once: a"),
        (["a"], {"batch_size": "large"}, "batch size 'large': a number above 0, or 'auto'"),
        (["a"], {"batch_size": 0}, "batch size 0"),
        (["a"], {"num_fewshot": -1}, "num_fewshot -1"),
        (["a"], {"limit": 0}, "limit 0"),
        (["a"], {"include_path": "nowhere"}, "include_path nowhere: no such folder"),
        ([], {"include_path": ".", "batch_size": 2}, "include_path, batch_size: of no use"),
    ],
)
def test_an_impossible_selection_is_refused(
    names: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DeltaLensError, match=said):
        TaskSelection.of(names, **options)


def test_an_unknown_task_is_told_its_nearest_names(include: Path) -> None:
    with pytest.raises(DeltaLensError, match=r"'choise': there is no such task; .*choice"):
        _ = tasks_of("choise", include_path=include).built


def test_a_task_that_has_to_be_downloaded_says_how_to_do_without(
    include: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "tasks"
    folder.mkdir()
    text = (include / "choice.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("dataset_")]
    lines = [line.replace("task: choice", "task: remote") for line in lines]
    text = "\n".join([*lines, "dataset_path: nobody/no-such-data"])
    (folder / "remote.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(
        DeltaLensError, match=r"'remote': its data .*cannot be downloaded.*offline|OFFLINE"
    ) as caught:
        _ = tasks_of("remote", include_path=folder).built
    assert "gsm8k=test.jsonl" in str(caught.value)


def test_generated_code_needs_confirmation(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "mbpp.jsonl", mbpp_rows(3))
    with pytest.raises(DeltaLensError, match=r"'mbpp' runs code .*`confirm_run_unsafe_code`"):
        _ = tasks_of(f"mbpp={file}").built
    confirmed = tasks_of(f"mbpp={file}", confirm_run_unsafe_code=True)
    assert confirmed.built.requests == 3


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("gsm8k", {"question": "a"}, r"line 2: 'answer' is null, and has to be a text"),
        ("gsm8k", {"question": 3, "answer": "a"}, r"line 2: 'question' is 3"),
        ("mbpp", {"text": "a", "code": "b", "test_list": ["c"]}, r"a list of 3 tests or more"),
    ],
)
def test_rows_that_are_no_documents_are_named(
    tmp_path: Path, name: str, row: dict[str, Any], said: str
) -> None:
    good = gsm8k_rows(1) if name == "gsm8k" else mbpp_rows(1)
    file = write_rows(tmp_path / "rows.jsonl", [*good, row])
    with pytest.raises(DeltaLensError, match=said):
        _ = tasks_of(f"{name}={file}", confirm_run_unsafe_code=True).built


def test_only_our_own_tasks_take_a_file(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", gsm8k_rows(1))
    with pytest.raises(DeltaLensError, match="local files for gsm8k, mbpp"):
        _ = tasks_of(f"mmlu={file}").built


def test_a_damaged_task_file_is_one_message(tmp_path: Path, include: Path) -> None:
    text = (include / "choice.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(text.replace("{{question}}", "{{question"), encoding="utf-8")
    with pytest.raises(DeltaLensError, match=r"task 'choice': cannot be loaded: Template"):
        _ = tasks_of("choice", include_path=tmp_path).built


def test_a_task_in_two_choices_is_refused(include: Path) -> None:
    with pytest.raises(DeltaLensError, match="'choice' is in 'both' and in 'choice'"):
        _ = tasks_of("both", "choice", include_path=include).built


def test_without_the_harness_it_says_what_to_install(
    include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(DeltaLensError, match=r"pip install 'deltalens\[eval\]'"):
        _ = tasks_of("choice", include_path=include).built


def test_a_model_that_continues_no_text_is_refused(include: Path, tmp_path: Path) -> None:
    folder = save(initialized(lambda: tiny("bert"), seed=0), tmp_path / "bert")
    loaded = load_model(open_checkpoint(folder), torch.float32, torch.device("cpu"))
    with pytest.raises(DeltaLensError, match="causal language model, not BertForMaskedLM"):
        TaskScoring(tasks_of("choice", include_path=include), loaded)


def test_a_model_too_short_for_a_task_is_one_message(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, positions=200)
    loaded = load_model(open_checkpoint(pair.base), torch.float32, torch.device("cpu"))
    file = write_rows(tmp_path / "rows.jsonl", gsm8k_rows(6))
    with pytest.raises(DeltaLensError, match=r"'gsm8k' generates up to 256 .* 200 positions"):
        TaskScoring(tasks_of(f"gsm8k={file}"), loaded)


def test_a_metric_of_the_caller_s_own_excludes_tasks() -> None:
    with pytest.raises(DeltaLensError, match="leave `tasks` out"):
        read_suite(
            data=(),
            metrics=(),
            metric=lambda model: 1.0,
            better=None,
            version=None,
            answer_pattern=None,
            limit=None,
            fields=None,
            fidelity=FidelityTexts(),
            batch_tokens=1,
            tasks=TaskSelection.of(["choice"]),
        )
