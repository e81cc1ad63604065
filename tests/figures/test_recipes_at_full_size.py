"""Figures of recipes at the papers' size, which nobody runs in a test: several models and domains
in one figure can be told apart, and each stands beside its own model of the paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from deltalens.api.recipe_steps import as_step
from deltalens.figures import Drawing, draw_named
from deltalens.recipes import Places, Plan, PlannedFigure, PlannedStep, load_recipe, plan
from tests.support import gmt_studies, mft_studies, speft_studies

Write = Callable[[Path, PlannedStep, dict[str, Any]], object]


def _asked(step: PlannedStep) -> dict[str, Any]:
    """Names of data and model as the step's study would record them."""
    arguments = as_step(step).arguments
    tasks = str(arguments.get("tasks") or "test").split(",")
    return {
        "sets": tuple(task.partition("=")[0] for task in tasks),
        "trained_on": Path(str(arguments["train_data"])).stem,
        "model": step.arguments[-1],
    }


def _gmt(folder: Path, step: PlannedStep, asked: dict[str, Any]) -> None:
    data = [asked.pop("trained_on"), 100, "d"]
    gmt_studies.write_sweep(folder, gmt_studies.EXACT, data=data, **asked)


def _mft(kind: str, values: mft_studies.Values) -> Write:
    def write(folder: Path, step: PlannedStep, asked: dict[str, Any]) -> None:
        more: dict[str, Any] = {"facts": {"model": asked.pop("model")}}
        if "eval-every" in step.options:
            more |= {"measured_at": (500,), "steps": 1000}
        if any("threshold" in str(each) for each in step.options.get("setting", ())):
            more["threshold"] = -0.035
        mft_studies.write_study(folder, kind, values, **asked, **more)

    return write


def _speft(kind: str, values: speft_studies.Values) -> Write:
    return lambda folder, step, asked: speft_studies.write_study(folder, kind, values, **asked)


def _speeds(folder: Path, step: PlannedStep, asked: dict[str, Any]) -> None:
    gmt_studies.write_efficiency(folder, {"sft": [1.0], "gmt": [0.9]})


WRITTEN: dict[tuple[str, str], Write] = {
    ("gmt", "sweep mask-ratio"): _gmt,
    ("gmt", "sweep data-ratio"): _mft("data-ratio-sweep", mft_studies.DATA_RATIOS),
    ("gmt", "efficiency"): _speeds,
    ("mft", "compare"): _mft("comparison", mft_studies.COMPARED),
    ("mft", "sweep mask-ratio"): _mft("mask-ratio-sweep", mft_studies.RATIOS),
    ("mft", "sweep data-ratio"): _mft("data-ratio-sweep", mft_studies.DATA_RATIOS),
    ("mft", "sweep layers"): _mft("layer-sweep", mft_studies.layers()),
    ("speft", "compare"): _speft("comparison", speft_studies.METHODS),
    ("speft", "sweep masks"): _speft("mask-sweep", speft_studies.MASKS),
    ("speft", "sweep density"): _speft("density-sweep", speft_studies.DENSITIES),
}
FIGURES = [
    ("gmt-fig2", "gmt-fig2"),
    *((f"gmt-tab{number}", f"gmt-tab{number}") for number in range(1, 5)),
    ("mft-fig2", "mft-fig2"),
    *(("mft-fig3", name) for name in ("mft-fig3", "mft-fig7")),
    *(("mft-fig4", name) for name in ("mft-fig4", "mft-fig8")),
    *(("mft-fig5", name) for name in ("mft-fig5", "mft-fig9")),
    *(("mft-tab1", f"mft-tab{number}") for number in (1, 2, 4, 5, 6)),
    ("mft-tab3", "mft-tab3"),
    ("speft-fig2", "speft-fig2"),
    *(("speft-tab1", f"speft-tab{number}") for number in (1, 5, 9, 10, 11)),
    *(("speft-tab2", f"speft-tab{number}") for number in (2, 6)),
    *(("speft-tab3", f"speft-tab{number}") for number in (3, 7)),
    ("speft-tab4", "speft-tab4"),
    *(("speft-tab12", f"speft-tab{number}") for number in (8, 12)),
]


def drawn(recipe: str, name: str, out: Path) -> Drawing:
    """A figure of a recipe at full size, from studies with made-up numbers."""
    made: Plan = plan(load_recipe(recipe), Places(out=out), [name])
    figure: PlannedFigure = made.figures[0]
    for step in made.steps:
        if step.folder in (*figure.studies, *figure.mixed):
            step.folder.parent.mkdir(parents=True, exist_ok=True)
            write = WRITTEN[made.recipe.paper.lower(), " ".join(step.command)]
            write(step.folder, step, _asked(step))
    options = {"mixed": figure.mixed} if figure.mixed else {}
    (drawing,) = draw_named(name, figure.studies, **options)
    return drawing


def panels(figure: Figure) -> list[tuple[str, str]]:
    """Title and y-axis of each panel."""
    shown = [axis for axis in figure.axes if axis.get_visible() and axis.get_title()]
    return [(axis.get_title(), axis.get_ylabel()) for axis in shown]


def blocks(drawing: Drawing) -> list[str]:
    return [table.title for table in drawing.tables]


@pytest.mark.parametrize(("recipe", "name"), FIGURES)
def test_what_is_drawn_of_several_models_can_be_told_apart(
    tmp_path: Path, recipe: str, name: str
) -> None:
    drawing = drawn(recipe, name, tmp_path)
    titles = panels(drawing.figure)
    assert len({*titles}) == len(titles)
    assert len({*blocks(drawing)}) == len(blocks(drawing))
    assert titles or blocks(drawing)


def test_a_model_stands_beside_its_own_rows_of_the_paper(tmp_path: Path) -> None:
    beside = [
        title for title in blocks(drawn("gmt-tab1", "gmt-tab1", tmp_path)) if "Beside" in title
    ]
    assert beside == [
        "Beside the paper (methods-mistral-7b-code): MISTRAL-7B, code generation",
        "Beside the paper (methods-deepseek-coder-6.7b-code): DEEPSEEK-CODER-BASE-6.7B, "
        "code generation",
        "Beside the paper (methods-mistral-7b-maths): MISTRAL-7B, math reasoning",
        "Beside the paper (methods-llama3-8b-maths): LLAMA3-8B, math reasoning",
    ]


def test_a_global_threshold_is_shown_for_each_model(tmp_path: Path) -> None:
    titles = blocks(drawn("mft-tab3", "mft-tab3", tmp_path))
    assert titles[:2] == [
        f"This study: fft-{model}-maths" for model in ("llama2-7b", "llama3.1-8b")
    ]
    assert [title.partition(" (")[0] for title in titles[2:4]] == [
        "Beside the paper: fft-llama2-7b-maths: LLaMA2-7B",
        "Beside the paper: fft-llama3.1-8b-maths: LLaMA3.1-8B",
    ]


def test_how_many_rows_a_benchmark_has_stands_beside_the_papers_count(tmp_path: Path) -> None:
    assert "Beside the paper" in blocks(drawn("mft-tab1", "mft-tab4", tmp_path))


def test_averages_are_of_one_model(tmp_path: Path) -> None:
    titles = blocks(drawn("speft-tab1", "speft-tab1", tmp_path))
    assert titles[:2] == ["This study: opt-350m", "This study: bert-base-uncased"]
    assert titles[2:4] == [
        f"Beside the paper: {name}" for name in ("OPT-350m", "BERT-base-uncased")
    ]


def test_benchmarks_belong_to_the_domain_that_the_paper_has_them_in(tmp_path: Path) -> None:
    titles = panels(drawn("mft-fig2", "mft-fig2", tmp_path).figure)
    assert [title for title, axis in titles if axis.startswith("exact")] == [
        "maths → gsm8k_cot",
        "maths → minerva_math",
        "code → humaneval",
        "instructions → ifeval",
    ]


def test_each_models_marks_are_those_of_its_own_table(tmp_path: Path) -> None:
    figure = drawn("mft-fig4", "mft-fig8", tmp_path).figure
    marks: dict[str, set[float]] = {}
    for axis in figure.axes:
        if "gsm8k" in axis.get_title() and "exact" in axis.get_ylabel():
            held = [line for line in axis.lines if line.get_label() == "_the paper"]
            marks[axis.get_title()] = {
                round(float(y), 1) for line in held for y in line.get_ydata()
            }  # type: ignore[union-attr]
    assert 46.9 in marks["fft-llama2-7b-maths → gsm8k_cot"]
    assert 77.0 in marks["fft-llama3.1-8b-maths → gsm8k_cot"]
