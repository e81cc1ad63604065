"""Standard tasks: the harness's own numbers, from requests that are built once."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import Measurement
from deltalens.scoring.loading import LoadedModel, load_model
from deltalens.scoring.tasks.finding import FILES, LOCAL_FILES
from deltalens.scoring.tasks.live_lm import LiveLM, TokenMemo
from deltalens.scoring.tasks.scoring import StandardTasks, TaskScoring
from deltalens.scoring.tasks.selection import TaskSelection
from tests.support.checkpoint_pairs import Pair
from tests.support.standard_tasks import (
    TASKS,
    count_builds,
    gsm8k_rows,
    write_pair,
    write_rows,
    write_tasks,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write_tasks(made / "tasks")
    write_rows(made / "gsm8k.jsonl", gsm8k_rows(8))
    return made


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return write_pair(folder)


@pytest.fixture(scope="module")
def loaded(pair: Pair) -> dict[str, LoadedModel]:
    return {
        path.name: load_model(open_checkpoint(path), torch.float32, torch.device("cpu"))
        for path in (pair.ft, pair.base)
    }


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return count_builds(monkeypatch)


def by_the_harness(model: Any, tokenizer: Any, **options: Any) -> dict[str, Measurement]:
    """What `lm_eval.simple_evaluate` says, by our names."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.pop("batch_size", 1))
    results = lm_eval.simple_evaluate(model=lm, log_samples=False, **options)["results"]
    found = {}
    for task, numbers in results.items():
        for key in numbers:
            metric, comma, of_filter = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                name = f"{task}/{metric}" if of_filter == "none" else f"{task}/{of_filter}/{metric}"
                stderr = numbers[f"{metric}_stderr,{of_filter}"]
                found[name] = (numbers[key], stderr)
    return found


def numbers_of(measured: dict[str, Measurement]) -> dict[str, tuple[float, Any]]:
    return {
        name: (one.value, "N/A" if one.stderr != one.stderr else one.stderr)
        for name, one in measured.items()
    }


@pytest.mark.parity
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("tasks", [[*TASKS][:2], ["rolling"], ["sampled"], ["both"]], ids="-".join)
def test_numbers_are_the_harness_s_to_the_last_bit(
    folder: Path, loaded: dict[str, LoadedModel], tasks: list[str], batch_size: int
) -> None:
    from lm_eval.tasks import TaskManager

    include = folder / "tasks"
    selection = TaskSelection.of(tasks, include_path=include, limit=5, batch_size=batch_size)
    assert selection is not None
    scoring = TaskScoring(StandardTasks(selection), loaded["ft"])
    # The second model is measured on requests that have been used, with tokens that are known.
    for name in ("ft", "base", "ft"):
        one = loaded[name]
        expected = by_the_harness(
            one.model,
            one.tokenizer,
            tasks=tasks,
            limit=5,
            batch_size=batch_size,
            task_manager=TaskManager(include_path=str(include), include_defaults=False),
        )
        assert numbers_of(scoring.measure(one.model)) == expected
        assert expected


@pytest.mark.parity
def test_gsm8k_is_measured_by_both_of_its_filters(
    folder: Path, loaded: dict[str, LoadedModel], builds: list[str]
) -> None:
    from lm_eval.tasks import TaskManager

    file, ft = folder / "gsm8k.jsonl", loaded["ft"]
    selection = TaskSelection.of([f"gsm8k={file}"], limit=4)
    assert selection is not None
    tasks = StandardTasks(selection)
    scoring = TaskScoring(tasks, ft)
    measured = [numbers_of(scoring.measure(loaded[name].model)) for name in ("ft", "base", "ft")]
    assert builds == ["gsm8k"]
    assert measured[0] == measured[2] != measured[1]
    assert measured[0] == by_the_harness(
        ft.model,
        ft.tokenizer,
        tasks=["gsm8k"],
        limit=4,
        task_manager=TaskManager(
            include_path=str(FILES),
            include_defaults=False,
            metadata={LOCAL_FILES: {"gsm8k": [str(file)]}},
        ),
    )
    assert {name: value for name, (value, _) in measured[0].items()} == {
        "gsm8k/strict-match/exact_match": 0.5,
        "gsm8k/flexible-extract/exact_match": 0.5,
    }


@pytest.mark.parity
@pytest.mark.parametrize("num_fewshot", [None, 3])
def test_prompts_are_the_harness_s(
    folder: Path, loaded: dict[str, LoadedModel], num_fewshot: int | None
) -> None:
    from lm_eval.tasks import TaskManager

    include, one = folder / "tasks", loaded["base"]
    manager = TaskManager(include_path=str(include), include_defaults=False)
    task = manager.load(["choice"])["tasks"]["choice"]
    options = {"limit": 5, "num_fewshot": num_fewshot}
    by_the_harness(one.model, one.tokenizer, tasks=[task], **options)
    selection = TaskSelection.of(["choice"], include_path=include, **options)
    assert selection is not None
    (ours,) = StandardTasks(selection).built.tasks.values()
    assert [each.args for each in ours.instances] == [each.args for each in task.instances]


CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chatting(loaded: LoadedModel, template: str | None) -> LoadedModel:
    """The same model with a tokenizer that has a chat template."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = template
    return replace(loaded, tokenizer=tokenizer)


@pytest.mark.parity
@pytest.mark.parametrize("task", ["choice", "sampled"])
def test_chats_are_the_harness_s_to_the_last_bit(
    folder: Path, loaded: dict[str, LoadedModel], task: str
) -> None:
    from lm_eval.tasks import TaskManager

    include, one = folder / "tasks", chatting(loaded["ft"], CHAT)
    manager = TaskManager(include_path=str(include), include_defaults=False)
    theirs = manager.load([task])["tasks"][task]
    options = {"limit": 4, "num_fewshot": 2, "apply_chat_template": True}
    expected = by_the_harness(one.model, one.tokenizer, tasks=[theirs], **options)
    selection = TaskSelection.of([task], include_path=include, **options)
    assert selection is not None
    tasks = StandardTasks(selection)
    assert numbers_of(TaskScoring(tasks, one).measure(one.model)) == expected
    (ours,) = tasks.built_for(LiveLM(one.model, one.tokenizer, 1, TokenMemo())).tasks.values()
    assert [each.args for each in ours.instances] == [each.args for each in theirs.instances]
    assert ours.instances[0].args[0].count("<user>") == 3, "examples are turns"
    plain = StandardTasks(replace(selection, apply_chat_template=False))
    assert tasks.identity() != plain.identity()


def test_requests_are_built_once_for_each_chat_template(
    folder: Path, loaded: dict[str, LoadedModel], builds: list[str]
) -> None:
    selection = TaskSelection.of(
        ["choice"], include_path=folder / "tasks", limit=2, apply_chat_template=True
    )
    assert selection is not None
    tasks = StandardTasks(selection)
    tasks.identity()
    first, second = (chatting(loaded["ft"], text) for text in (CHAT, f"be kind {CHAT}"))
    scores = [TaskScoring(tasks, one).measure(one.model) for one in (first, second, first)]
    assert scores[0] == scores[2]
    assert builds == ["choice"] * 3, "without a template, for the identity; and for each of two"


def test_a_model_without_a_chat_template_is_refused(
    folder: Path, loaded: dict[str, LoadedModel]
) -> None:
    selection = TaskSelection.of(
        ["choice"], include_path=folder / "tasks", apply_chat_template=True
    )
    assert selection is not None
    with pytest.raises(DeltaLensError, match="no chat template: leave `apply_chat_template` out"):
        TaskScoring(StandardTasks(selection), chatting(loaded["ft"], None))


def test_fewshot_examples_come_from_a_second_file(folder: Path, tmp_path: Path) -> None:
    train = [{"question": "of train?", "answer": f"#### {n}"} for n in range(9)]
    others = write_rows(tmp_path / "train.jsonl", train)
    chosen = f"gsm8k={folder / 'gsm8k.jsonl'}:{others}"
    selection = TaskSelection.of([chosen], limit=2, num_fewshot=3)
    assert selection is not None
    (task,) = StandardTasks(selection).built.tasks.values()
    prompts = [instance.args[0] for instance in task.instances]
    assert [prompt.count("of train?") for prompt in prompts] == [3, 3]
    assert [prompt.count("eggs") for prompt in prompts] == [1, 1]


def test_tasks_are_sent_without_requests_and_built_alike_elsewhere(folder: Path) -> None:
    selection = TaskSelection.of(["choice"], include_path=folder / "tasks")
    assert selection is not None
    tasks = StandardTasks(selection)
    identity = tasks.identity()
    sent = pickle.dumps(tasks)
    assert len(sent) < 1000
    assert pickle.loads(sent).identity() == identity


def test_a_process_that_reads_other_rows_is_refused(tmp_path: Path) -> None:
    include = write_tasks(tmp_path / "tasks")
    selection = TaskSelection.of(["choice"], include_path=include)
    assert selection is not None
    sent = pickle.dumps(StandardTasks(selection))
    rows = include / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("eggs", "hens"), encoding="utf-8")
    with pytest.raises(DeltaLensError, match="the harness makes other requests of them"):
        assert pickle.loads(sent).built


def test_tasks_that_are_moved_with_their_data_stay_the_same(tmp_path: Path) -> None:
    identities = []
    for name in ("here", "there"):
        include = write_tasks(tmp_path / name)
        selection = TaskSelection.of(["both"], include_path=include)
        assert selection is not None
        identities.append(StandardTasks(selection).identity())
    assert identities[0] == identities[1]


@pytest.mark.parametrize("change", ["rows", "settings", "examples"])
def test_another_task_has_another_identity(tmp_path: Path, change: str) -> None:
    include = write_tasks(tmp_path / "tasks")

    def identity(**options: Any) -> dict[str, Any]:
        selection = TaskSelection.of(["choice"], include_path=include, **options)
        assert selection is not None
        return StandardTasks(selection).identity()

    before = identity()
    assert identity() == before
    if change == "rows":
        rows = include / "rows.jsonl"
        rows.write_text(rows.read_text(encoding="utf-8").replace("eggs", "hens"), encoding="utf-8")
    if change == "settings":
        file = include / "choice.yaml"
        file.write_text(
            f"{file.read_text(encoding='utf-8')}\nmetric_list: [{{metric: acc_norm}}]\n"
        )
    after = identity(num_fewshot=2) if change == "examples" else identity()
    assert after["tasks"] != before["tasks"]


def test_prompts_that_are_cut_are_counted(folder: Path, tmp_path: Path) -> None:
    short = write_pair(tmp_path, positions=400)
    loaded = load_model(open_checkpoint(short.base), torch.float32, torch.device("cpu"))
    selection = TaskSelection.of([f"gsm8k={folder / 'gsm8k.jsonl'}"], limit=4)
    assert selection is not None
    (note,) = TaskScoring(StandardTasks(selection), loaded).notes
    assert note.startswith("gsm8k: 4 of 4 prompts are longer than the model's 400 positions")


def test_callers_generators_and_tokenizer_are_as_before(
    folder: Path, loaded: dict[str, LoadedModel]
) -> None:
    one = replace(loaded["ft"], tokenizer=copy.deepcopy(loaded["ft"].tokenizer))
    one.tokenizer.pad_token = None
    selection = TaskSelection.of(["sampled"], include_path=folder / "tasks", limit=2)
    assert selection is not None
    weights = {k: v.clone() for k, v in one.model.state_dict().items()}
    parameters = [*one.model.parameters()]
    drawn = []
    for measures in (False, True):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        if measures:
            TaskScoring(StandardTasks(selection), one).measure(one.model)
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]
    assert one.tokenizer.pad_token is None
    assert all(a is b for a, b in zip(parameters, one.model.parameters(), strict=True))
    assert all(torch.equal(weights[k], v) for k, v in one.model.state_dict().items())
