"""From a recipe to commands: only what a figure needs, with every name replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deltalens.errors import DeltaLensError
from deltalens.recipes import Places, Plan, cost_of, load_recipe, plan, total_of
from deltalens.recipes.estimate import CORES, GPU
from deltalens.recipes.pace import Pace
from deltalens.recipes.schema import Recipe, Step

OUT = Path("results")


def planned(name: str, *figures: str, demo: bool = False, **places: object) -> Plan:
    where = Places(out=OUT, demo=demo, **places)  # type: ignore[arg-type]
    return plan(load_recipe(name), where, figures)


def with_step(run: str, **more: object) -> Recipe:
    recipe = load_recipe("gmt-fig3")
    step = Step(run=run, why="Why?", **more)  # type: ignore[arg-type]
    return replace(recipe, steps={**recipe.steps, "drop": step})


def test_a_figure_takes_its_own_steps_only() -> None:
    names = [step.name for step in planned("mft-fig4", "mft-fig8").steps]
    assert names == [
        "mft/fft-llama2-7b-maths",
        "mft/ratios-llama2-7b-maths",
        "mft/fft-llama3.1-8b-maths",
        "mft/ratios-llama3.1-8b-maths",
    ]
    assert len(planned("mft-fig4").steps) == 12


def test_names_stand_for_folders_files_and_models() -> None:
    train, drop = planned("gmt-fig3").steps
    assert train.arguments == ("sft", "mistralai/Mistral-7B-v0.1")
    assert train.options["train-data"] == str(OUT / "data" / "maths.jsonl")
    assert drop.arguments == (str(train.folder), "mistralai/Mistral-7B-v0.1")
    assert drop.needs == (train.name,)


def test_a_local_file_and_another_base_stand_in_for_downloads() -> None:
    whole = planned("real-small")
    assert {*whole.models} == {"base"}
    assert "gsm8k-train" in whole.data
    files = {"gsm8k-train": "train.jsonl", "gsm8k-test": "test.jsonl"}
    own = planned("real-small", base="my-base", data=files)
    assert own.models == {}
    assert not {"gsm8k-train", "gsm8k-test"} & {*own.data}
    assert own.steps[0].arguments == ("sft", "my-base")
    assert own.steps[0].options["train-data"] == "train.jsonl"
    assert own.steps[0].identity != whole.steps[0].identity


def test_results_of_other_settings_have_another_identity_and_so_has_what_needs_them() -> None:
    recipe = load_recipe("gmt-fig3")
    steps = {**recipe.steps, "sft": replace(recipe.steps["sft"], options={"seed": 1})}
    before = planned("gmt-fig3").steps
    after = plan(replace(recipe, steps=steps), Places(out=OUT)).steps
    pairs = zip(before, after, strict=True)
    assert [a.identity == b.identity for a, b in pairs] == [False, False]
    elsewhere = plan(recipe, Places(out=Path("elsewhere"))).steps
    assert [step.identity for step in elsewhere] == [step.identity for step in before]


def test_in_miniature_models_share_a_step() -> None:
    steps = [step.name for step in planned("gmt-tab1", demo=True).steps]
    assert "gmt/methods-toy-code" in steps
    assert "gmt/methods-toy-maths" in steps
    assert len(steps) == 4


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("drop-study @sfd @{model}", "@sfd: names no step, model or data set; did you mean @sft"),
        ("drop-study @sft @{modle}", "no value is given for modle"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(run: str, message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        plan(with_step(run), Places(out=OUT))


@pytest.mark.bad_input
def test_unknown_settings_are_refused() -> None:
    with pytest.raises(DeltaLensError, match="no settings are called 'trainin'"):
        plan(with_step("drop-study @sft @{model}", uses=("trainin",)), Places(out=OUT))


def test_a_training_takes_six_operations_a_parameter_and_token() -> None:
    made = planned("gmt-fig3")
    train, drop = (cost_of(step, made) for step in made.steps)
    steps = 3 * -(-395_000 // 128)
    assert (train.trainings, train.steps) == (1, steps)
    assert train.training_flops == pytest.approx(6 * 7.242e9 * steps * 128 * 250)
    # Nine rates between 0 and 1, two orders and three random ones; the fine-tune and the base.
    assert drop.cells == 9 * 5 + 2
    tokens = 1319 * 350 + 5000 * 500
    assert drop.measuring_flops == pytest.approx(2 * 7.242e9 * tokens * 47)
    total = total_of([train, drop])
    assert total.hours(GPU) == pytest.approx(train.hours(GPU) + drop.hours(GPU))
    assert total.memory == train.memory == 7.242e9 * 2 * 4


@pytest.mark.parametrize(
    ("recipe", "step", "trainings"),
    [
        ("gmt-fig2", "gmt/ratios-mistral-7b-maths", 11 + 1),  # and plain fine-tuning
        ("gmt-tab1", "gmt/methods-mistral-7b-maths", 1 + 1 + 1 + 1),  # the drop trains nothing
        ("mft-fig3", "mft/layers-llama2-7b-maths", 8 + 4),
        ("mft-tab1", "mft/compare-llama2-7b-maths", 1 + 1 + 1 + 2),
        ("speft-tab1", "speft/metrics-opt-350m-mnli", 10 * 3 * 4),
        ("speft-tab4", "speft/masks-opt-350m-mnli", 4 * 3 * 4),
        ("speft-fig2", "speft/budgets-gemma2-2b-metamathqa", 3 * 6),
    ],
)
def test_trainings_of_a_study_are_counted(recipe: str, step: str, trainings: int) -> None:
    made = planned(recipe)
    found = next(each for each in made.steps if each.name == step)
    assert cost_of(found, made).trainings == trainings


def test_the_real_one_is_planned_for_two_cores_in_hours() -> None:
    made = planned("real-small")
    assert 1 < total_of(cost_of(step, made) for step in made.steps).hours(CORES) < 8
    writing = {step.name for step in made.steps if cost_of(step, made).writing_flops}
    assert writing == {"real-small/numbers"}


def test_what_is_left_follows_from_what_is_done() -> None:
    made = planned("gmt-fig3", demo=True)
    train, drop = (step.name for step in made.steps)
    pace = Pace([made])
    assert pace.seconds_left({}, [train, drop]) is None
    assert pace.seconds_left({train: 16.0, drop: 4.0}, []) == 0
    steps, cells = cost_of(made.steps[0], made).steps, cost_of(made.steps[1], made).cells
    expected = 16 * (10 + 3 * cells) / (10 + steps + 3)
    assert pace.seconds_left({train: 16.0}, [drop]) == pytest.approx(expected)


def test_what_belongs_to_others_takes_no_time() -> None:
    made = planned("gmt-tab1", demo=True)
    others = [step.name for step in made.steps if step.owner is not None]
    own = [step.name for step in made.steps if step.owner is None]
    pace = Pace([made])
    assert others
    assert pace.seconds_left({own[0]: 9.0}, others) == 0
    assert pace.seconds_left(dict.fromkeys(others, 0.0), own) is None


def test_fidelity_is_measured_on_the_texts_that_a_study_samples() -> None:
    from deltalens.scoring.texts import FidelityTexts

    made = planned("real-small")
    (step,) = [each for each in made.steps if each.name == "real-small/fidelity"]
    cost, parameters = cost_of(step, made), made.models["base"].parameters
    tokens = FidelityTexts().sequences * int(step.options["fidelity-tokens"])
    assert cost.cells == 23
    assert cost.measuring_flops == pytest.approx(2 * parameters * tokens * cost.cells)
