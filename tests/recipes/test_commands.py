"""The commands of every recipe are commands that deltalens has, at full size and in miniature, with
the papers' hyperparameters."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from deltalens.api.recipe_steps import as_step
from deltalens.cli.steps import command_of_step, typed_line
from deltalens.recipes import Places, Plan, PlannedStep, load_recipe, plan, recipe_names
from tests.architecture.commands import fault_in

OUT = Path("results")
SIZES = pytest.mark.parametrize("demo", [False, True], ids=["full", "demo"])


def planned(name: str, demo: bool = False) -> Plan:
    return plan(load_recipe(name), Places(out=OUT, demo=demo))


def line_of(step: PlannedStep) -> str:
    made = as_step(step)
    return typed_line(command_of_step(made), made.arguments)


def step_of(name: str, step: str) -> PlannedStep:
    return next(each for each in planned(name).steps if each.name == step)


@SIZES
@pytest.mark.parametrize("name", recipe_names())
def test_they_parse(name: str, demo: bool) -> None:
    steps = [step for step in planned(name, demo).steps if step.owner is None]
    faults = {step.name: fault_in(shlex.split(line_of(step))[1:]) for step in steps}
    assert steps or name == "methods"  # which only draws
    assert {step: fault for step, fault in faults.items() if fault} == {}


def test_an_option_that_does_not_exist_is_seen() -> None:
    line = line_of(step_of("gmt-fig3", "gmt/drop-mistral-7b-maths"))
    assert fault_in(shlex.split(line.replace("--rates", "--ratez"))[1:]) is not None


@SIZES
def test_a_step_that_recipes_share_is_the_same_in_each(demo: bool) -> None:
    found: dict[str, set[str]] = {}
    for name in recipe_names():
        for step in planned(name, demo).steps:
            found.setdefault(step.name, set()).add(step.identity)
    assert [name for name, identities in found.items() if len(identities) > 1] == []


@pytest.mark.parametrize("name", recipe_names())
def test_a_step_comes_after_what_it_needs(name: str) -> None:
    for demo in (False, True):
        done: set[str] = set()
        for step in planned(name, demo).steps:
            assert {*step.needs} <= done
            done.add(step.name)


@pytest.mark.parametrize("name", recipe_names())
def test_in_miniature_nothing_of_the_hub_is_left(name: str) -> None:
    made = planned(name, demo=True)
    assert not made.models
    assert not made.data
    hubs = {model.hub for model in made.recipe.models.values()}
    for step in made.steps:
        assert not hubs & {*step.arguments}
        assert "tasks" not in step.options


@pytest.mark.parametrize(
    ("recipe", "step", "options"),
    [
        # GMT, Table 4 and Section 4.1.
        ("gmt-tab1", "gmt/methods-mistral-7b-maths", {"mask-ratios": "0.2", "warmup": 0.03}),
        ("gmt-tab1", "gmt/methods-llama3-8b-maths", {"mask-ratios": "0.3", "weight-decay": 0}),
        ("gmt-tab1", "gmt/methods-mistral-7b-code", {"mask-ratios": "0.1"}),
        ("gmt-tab1", "gmt/methods-deepseek-coder-6.7b-code", {"mask-ratios": "0.3"}),
        ("gmt-tab2", "gmt/methods-llama2-7b-general", {"mask-ratios": "0.4"}),
        ("gmt-tab2", "gmt/methods-llama2-13b-general", {"mask-ratios": "0.1"}),
        ("gmt-fig2", "gmt/ratios-llama2-7b-general", {"mask-ratios": "0.1:0.9:0.1,0.95,0.99"}),
        # MFT, Appendix A.1 and Section 3.
        ("mft-fig4", "mft/fft-llama2-7b-code", {"learning-rate": 2e-5, "epochs": 2}),
        ("mft-fig4", "mft/fft-llama3.1-8b-code", {"learning-rate": 5e-6, "batch-size": 8}),
        ("mft-fig3", "mft/layers-llama2-7b-maths", {"group-sizes": "4,8", "data-ratio": 0.1}),
        ("mft-fig3", "mft/large-groups-llama2-7b-maths", {"group-sizes": "16"}),
        # SPEFT, Tables 4, 7 and 8, Appendix C.
        ("speft-tab4", "speft/masks-opt-350m-mnli", {"refresh-every": 1000}),
        (
            "speft-tab3",
            "speft/generating-gemma2-2b-metamathqa",
            {"learning-rate": 2e-5, "epochs": 1, "batch-size": 16, "max-length": 1024},
        ),
        ("speft-tab12", "speft/code-llama3-8b-codefeedback", {"max-length": 512}),
        ("speft-fig2", "speft/budgets-gemma2-2b-metamathqa", {"ranks": "4,8,16,32,64,128"}),
    ],
)
def test_hyperparameters_are_the_papers(recipe: str, step: str, options: dict[str, Any]) -> None:
    taken = step_of(recipe, step).options
    assert {name: taken.get(name) for name in options} == options


@pytest.mark.parametrize(
    ("recipe", "step", "setting"),
    [
        ("speft-tab1", "speft/metrics-opt-350m-mnli", "of-model=0.0035"),
        ("speft-tab1", "speft/metrics-bert-base-mnli", "of-model=0.0027"),
        ("speft-tab1", "speft/metrics-roberta-base-mnli", "of-model=0.0024"),
        ("speft-tab1", "speft/metrics-opt-1.3b-mrpc", "of-model=0.0018"),
        ("speft-tab2", "speft/generating-qwen2-7b-alpaca", "of-model=0.0053"),
        ("speft-tab3", "speft/generating-gemma2-2b-metamathqa", "of-model=0.0097"),
        ("speft-tab3", "speft/generating-gemma2-2b-metamathqa", "lora-alpha=16"),
        ("speft-tab12", "speft/code-llama3-8b-codefeedback", "of-model=0.0067"),
        ("speft-tab12", "speft/code-llama3-8b-codefeedback", "lora-rank=64"),
        ("speft-tab1", "speft/metrics-opt-350m-mnli", "examples=1024"),
    ],
)
def test_settings_of_methods_are_the_papers(recipe: str, step: str, setting: str) -> None:
    assert setting in step_of(recipe, step).options["setting"]


@pytest.mark.parametrize(
    ("backbone", "domain", "blocks"),
    [
        ("llama2-7b", "maths", "4-7"),
        ("llama2-7b", "code", "20-23"),
        ("llama2-7b", "instructions", "0-3"),
        ("llama3.1-8b", "maths", "24-27"),
        ("llama3.1-8b", "code", "20-23"),
        ("llama3.1-8b", "instructions", "24-27"),
    ],
)
def test_mft_masks_the_papers_blocks(backbone: str, domain: str, blocks: str) -> None:
    from deltalens.training.paper import paper_settings

    options = step_of("mft-tab1", f"mft/compare-{backbone}-{domain}").options
    settings = paper_settings(options["recipe"], ["mft"])
    assert settings.own == {"mask_ratio": "0.1", "blocks": blocks}
    assert settings.shared["learning_rate"] == options["learning-rate"]


def test_rows_are_as_many_as_the_paper_has() -> None:
    data = load_recipe("mft-tab1").data
    rows = {each.hub: each.rows for part in ("maths", "code") for each in data[part].sources}
    assert rows["meta-math/MetaMathQA"] == 395_000
    assert rows["allenai/tulu-3-sft-personas-math"] == 149_960
    assert [each.rows for each in data["instructions"].sources] == [7_132, 29_980, 30_000]
    parts = sum(data[name].rows for name in ("maths", "code", "instructions"))
    assert data["mixed"].rows == parts


def test_the_harness_has_the_tasks() -> None:
    manager = pytest.importorskip("lm_eval.tasks").TaskManager()
    named = set()
    for name in recipe_names():
        for step in planned(name).steps:
            tasks = str(step.options.get("tasks", "")).split(",")
            named |= {task.partition("=")[0] for task in tasks if task}
    assert len(named) > 8
    assert [name for name in sorted(named) if name not in manager.all_tasks] == []
