"""Recipes as files: what they may say, by which names they are found, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltalens.errors import DeltaLensError
from deltalens.figures import FIGURES
from deltalens.recipes import load_recipe, recipe_names, recipes_for

SMALL = """
title: A small one
paper: GMT
models: {small: {hub: org/small, parameters: 1000.0}}
settings:
  training: {steps: {value: 3, ours: "it is small"}}
steps:
  sft: {run: train sft @small, why: "Train.", uses: [training]}
makes: {gmt-fig3: [{step: sft}]}
"""


def written(folder: Path, text: str) -> str:
    file = folder / "own.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.demo is not None
    assert {*recipe.makes} <= {*FIGURES}


def test_every_figure_of_the_papers_has_a_recipe_and_twins_share_one() -> None:
    made = {figure: name for name in recipe_names() for figure in load_recipe(name).makes}
    assert {name for name, entry in FIGURES.items() if entry.paper and entry.source} <= {*made}
    twins = [(a, b) for a in ("mft-fig8", "mft-tab2") for b in (FIGURES[a].same_as,)]
    assert all(recipes_for([a])[0][0].name == recipes_for([b])[0][0].name for a, b in twins)


def test_a_figure_of_a_paper_is_found_in_that_papers_recipe() -> None:
    ((recipe, figures),) = recipes_for(["gmt-fig3"])
    assert (recipe.name, figures) == ("gmt-fig3", ())
    ((recipe, figures),) = recipes_for(["mft-fig8"])
    assert (recipe.name, figures) == ("mft-fig4", ("mft-fig8",))
    ((recipe, figures),) = recipes_for(["mft-fig8", "mft-fig4"])
    assert (recipe.name, figures) == ("mft-fig4", ())


def test_a_recipe_of_ones_own_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, SMALL))
    assert recipe.settings["training"]["steps"].value == 3
    assert recipe.models["small"].size == 2000


@pytest.mark.bad_input
def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(DeltaLensError, match="'gmt-fig33'; did you mean gmt-fig3"):
        recipes_for(["gmt-fig33"])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("title:", "titel:", "unknown key 'titel'; did you mean title?"),
        ("title: A small one", "", "has no title"),
        ("uses: [", "use: [", "steps.sft: unknown key 'use'; did you mean uses?"),
        ("parameters: 1000.0", "parameters: many", "models.small.parameters: 'many' is no float"),
        (', ours: "it is small"', "", "settings.training.steps: say where the paper has it"),
        ("value: 3", "value: {by: x}", "settings.training.steps.value: has no values"),
        ("uses: [training]", "uses: training", "steps.sft.uses: not a list of names"),
        ("{step: sft}", "{stop: sft}", r"makes.gmt-fig3.studies\[0\]: name a step"),
        ("paper: GMT", "paper: 3", "paper: 3 is no str"),
    ],
)
def test_a_fault_is_named_by_its_keys(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in SMALL
    with pytest.raises(DeltaLensError, match=message):
        load_recipe(written(tmp_path, SMALL.replace(before, after)))


@pytest.mark.bad_input
def test_all_faults_are_named_together(tmp_path: Path) -> None:
    text = SMALL.replace("title:", "titel:").replace("uses: [", "use: [")
    with pytest.raises(DeltaLensError, match=r"titel.*\n.*use") as refused:
        load_recipe(written(tmp_path, text))
    assert str(refused.value).count("  - ") == 3


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "includes: nothing\n", "3\n"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DeltaLensError, match=r"own\.yaml"):
        load_recipe(written(tmp_path, text))
