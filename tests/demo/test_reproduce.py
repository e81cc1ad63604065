"""`deltalens reproduce --demo`: a recipe from beginning to end, and on from where it stopped."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import deltalens
from deltalens import load_study
from deltalens.api import reproducing
from deltalens.api.reproducing import Reproduction
from deltalens.api.steps import ReproduceWatch, Step
from deltalens.cli.main import app
from deltalens.demo import build
from deltalens.errors import DeltaLensError
from deltalens.recipes import recipe_names
from tests.support.demo import TINY, tiny_models

LESS: dict[str, Any] = {
    "steps": 2,
    "seeds": 1,
    "jobs": 1,
    "eval_every": 1,
    "grid": "3x3",
    "rates": "0,0.5,1",
    "mask_ratios": "0.5",
    "ranks": "1",
    "repeats": 1,
    "block_steps": 1,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's models are tiny."""
    tiny_models(monkeypatch)
    monkeypatch.setattr(build, "TRAINING_ROWS", 64)


def shortened(step: Step) -> Any:
    """Take a step in seconds."""
    less = {name: value for name, value in LESS.items() if name in step.arguments}
    return step.function(**{**step.arguments, **less})


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["reproduce", *words])


@pytest.mark.usefixtures("tiny")
def test_a_recipe_runs_as_its_commands_and_is_not_run_again(tmp_path: Path) -> None:
    first = run("gmt-fig3", "--demo", "-o", str(tmp_path))
    assert first.exit_code == 0, (first.output, first.exception)
    assert f"$ deltalens train sft {tmp_path / 'base'}" in first.output
    study = load_study(tmp_path / "gmt" / "drop-toy-maths")
    assert set(study.cells["strategy"]) >= {"salient", "trivial", "random"}
    picture = tmp_path / "figures" / "gmt-fig3" / "gmt_fig3.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    journal = (tmp_path / "reproduced.jsonl").read_bytes()
    assert [json.loads(line)["state"] for line in journal.splitlines()] == ["finished"] * 2
    again = run("gmt-fig3", "--demo", "-o", str(tmp_path), "--json")
    assert again.exit_code == 0
    assert [each["before"] for each in json.loads(again.stdout)["steps"]] == [True, True]
    assert (tmp_path / "reproduced.jsonl").read_bytes() == journal


@pytest.mark.usefixtures("tiny")
@pytest.mark.resume
def test_a_step_that_fails_has_a_reason_and_stops_what_needs_it_only(tmp_path: Path) -> None:
    def take(break_at: str) -> Callable[[Step], Any]:
        def taken(step: Step) -> Any:
            if break_at and str(step.arguments["out"]).endswith(break_at):
                raise DeltaLensError("no room for it")
            return shortened(step)

        return taken

    names = ["gmt-fig3", "gmt-tab3"]
    watch = ReproduceWatch(step=take("sft-toy-maths"))
    broken = deltalens.reproduce(names, tmp_path, demo=True, watch=watch)
    states = {each.name: (each.state, each.reason) for each in broken.steps}
    assert states["gmt/sft-toy-maths"] == ("failed", "no room for it")
    assert states["gmt/drop-toy-maths"] == ("not run", "it needs gmt/sft-toy-maths")
    assert states["gmt/speed-toy-code"] == ("finished", "")
    assert [each.name for each in broken.failed] == ["gmt/sft-toy-maths"]
    ended = {each.name: each.state for each in broken.figures}
    assert ended == {"gmt-fig3: gmt-fig3": "not run", "gmt-tab3: gmt-tab3": "finished"}
    whole = deltalens.reproduce(names, tmp_path, demo=True, watch=ReproduceWatch(step=take("")))
    assert {each.state for each in (*whole.steps, *whole.figures)} == {"finished"}
    assert [each.before for each in whole.steps] == [False, False, True, True]


@pytest.mark.usefixtures("tiny")
@pytest.mark.resume
def test_what_ctrl_c_stops_goes_on(tmp_path: Path) -> None:
    def stop_at_second(step: Step) -> Any:
        if step.function is deltalens.drop_study:
            raise KeyboardInterrupt
        return shortened(step)

    with pytest.raises(KeyboardInterrupt):
        deltalens.reproduce(
            ["gmt-fig3"], tmp_path, demo=True, watch=ReproduceWatch(step=stop_at_second)
        )
    begun: list[str] = []

    def noted(step: Step) -> Any:
        begun.append(Path(step.arguments["out"]).name)
        return shortened(step)

    deltalens.reproduce(["gmt-fig3"], tmp_path, demo=True, watch=ReproduceWatch(step=noted))
    assert begun == ["drop-toy-maths"]


@pytest.mark.usefixtures("tiny")
def test_the_demo_of_all_is_every_recipe_in_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproducing, "every_recipe", lambda: ["methods", "gmt-fig3"])
    made = CliRunner().invoke(app, ["demo", "--all", "-o", str(tmp_path)])
    assert made.exit_code == 0, (made.output, made.exception)
    assert "[1 of 2] gmt/sft-toy-maths" in made.output
    assert re.search(r"\[2 of 2, about \d+ min left of all\] gmt/drop-toy-maths", made.output)
    figures = tmp_path / "figures"
    assert (figures / "methods" / "speft_fig1.png").is_file()
    assert (figures / "gmt-fig3" / "gmt_fig3.svg").is_file()
    again = deltalens.build_demo(out=tmp_path, all=True)
    assert isinstance(again, Reproduction)
    assert [each.before for each in again.steps] == [True, True]


def test_methods_are_drawn_without_a_model(tmp_path: Path) -> None:
    drawn = deltalens.reproduce(["gmt-fig1"], tmp_path, demo=True)
    assert [each.name for each in drawn.figures] == ["methods: gmt-fig1"]
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


@pytest.mark.bad_input
def test_all_is_no_part(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["demo", "gmt", "--all", "-o", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "all is more than part gmt" in refused.output
    assert not (tmp_path / "out").exists()


@pytest.mark.bad_input
def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    line = {"step": "gmt/sft-toy-maths", "identity": "other", "state": "finished", "version": "0"}
    (tmp_path / "reproduced.jsonl").write_text(json.dumps(line) + "\n")
    refused = run("gmt-fig3", "--demo", "-o", str(tmp_path))
    assert refused.exit_code == 2
    assert "holds results of other settings" in refused.output
    assert not (tmp_path / "base").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a recipe, a figure or a table: gmt-fig2, gmt-fig3"),
        (["mft-figg4"], "did you mean mft-fig4"),
        (["gmt-fig3", "--rows", "math=x.jsonl"], "--rows math=...: no such data set"),
        (["gmt-fig3", "--rows", "x.jsonl"], "write NAME=FILE"),
        (["gmt-fig3", "--rows", "maths=none.jsonl"], "maths=none.jsonl: no such file"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, words: list[str], message: str
) -> None:
    refused = run(*words, "-o", str(tmp_path / "out"))
    assert refused.exit_code == 2
    assert message in refused.output
    assert not (tmp_path / "out").exists()


def test_every_plan_is_printed_with_what_it_takes(tmp_path: Path) -> None:
    shown = run("--all", "--dry-run", "-o", str(tmp_path / "out"))
    assert shown.exit_code == 0, shown.output
    for name in recipe_names():
        assert f"\n{name}: " in f"\n{shown.stdout}"
    assert "downloads: mistralai/Mistral-7B-v0.1, 14.5 GB" in shown.stdout
    assert "hours on one H100" in shown.stdout
    assert "not run, because AlpacaEval's judge" in shown.stdout
    assert not (tmp_path / "out").exists()


def test_a_plan_for_scripts_has_commands_and_numbers() -> None:
    shown = run("real-small", "--dry-run", "--json", "--base", "my-base")
    (recipe,) = json.loads(shown.stdout)["recipes"]
    assert recipe["steps"][0]["command"].startswith("deltalens train sft my-base ")
    assert recipe["models"] == {}
    assert 1 < recipe["total"]["two_core_hours"] < 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_recipe_runs_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.demo.TINY", dataclasses.replace(TINY, blocks=3))
    tiny_models(monkeypatch)
    monkeypatch.setattr(build, "TRAINING_ROWS", 64)
    monkeypatch.setattr(build, "FEW_ROWS", 32)
    done = deltalens.reproduce(
        out=tmp_path, all=True, demo=True, watch=ReproduceWatch(step=shortened)
    )
    assert [f"{each.name}: {each.reason}" for each in done.failed] == []
    others = {each.name for each in done.steps if each.state == "not run"}
    assert {name.partition("-")[0] for name in others} == {
        "gmt/evalplus",
        "gmt/pass",
        "mft/evalplus",
        "mft/alpaca",
    }
    assert {each.state for each in done.figures} == {"finished"}
