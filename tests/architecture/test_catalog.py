"""The words for a metric's direction, and the list of methods, stand in one place each: looked for
in every syntax tree."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalens.catalog.methods import METHODS, TRAININGS
from deltalens.catalog.metrics import DIRECTIONS
from deltalens.catalog.studies import STUDIES
from deltalens.training.methods import method_class
from tests.architecture.import_graph import INSTALLED_AS, ROOT

NAMES = {*METHODS} - {"base", "ft"}
"""But for the models as they are: many a table has a column for both."""
DIRECTIONS_STAND_IN = {"deltalens/catalog/metrics.py"}
METHODS_STAND_IN = {
    "deltalens/catalog/methods.py",
    "deltalens/catalog/studies.py",
    "deltalens/api/demos.py",  # Two demos are called after methods.
    "cli/commands.py",  # Examples to copy.
}


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    files = [path for folder in INSTALLED_AS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in files]


def directions_in(tree: ast.Module) -> list[int]:
    """The lines on which a direction is written as a word."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in DIRECTIONS
    ]


def tables_in(tree: ast.Module) -> list[int]:
    """The lines on which a collection with two names of methods or more begins."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict)
        and len({name for name in names_in(node) if name in NAMES}) > 1
    ]


def names_in(node: ast.Tuple | ast.List | ast.Set | ast.Dict) -> Iterator[str]:
    held = node.keys if isinstance(node, ast.Dict) else node.elts
    for one in held:
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value
        elif isinstance(one, ast.Starred) and isinstance(one.value, ast.Tuple | ast.List | ast.Set):
            yield from names_in(one.value)


def test_the_words_for_a_direction_stand_in_one_module() -> None:
    found = {f"{file}:{line}" for file, tree in sources() for line in directions_in(tree)}
    assert {one for one in found if one.partition(":")[0] not in DIRECTIONS_STAND_IN} == set()
    assert found


def test_the_methods_are_listed_in_one_module() -> None:
    found = {f"{file}:{line}" for file, tree in sources() for line in tables_in(tree)}
    assert {one for one in found if one.partition(":")[0] not in METHODS_STAND_IN} == set()
    assert {one.partition(":")[0] for one in found} == METHODS_STAND_IN


def test_every_method_has_its_class_and_those_that_stand_alone_are_trained() -> None:
    made = {name: method_class(name) for name, facts in METHODS.items() if facts.code}
    assert {kind.name for kind in made.values()} == {*made} == {*METHODS} - {"dpo"}
    assert all(kind.facts is METHODS[name] for name, kind in made.items())
    alone = {name for name in made if not (METHODS[name].as_trained or METHODS[name].as_it_is)}
    assert {*TRAININGS} == alone
    assert all({*study.methods, *study.default} <= {*METHODS} for study in STUDIES.values())


def test_what_the_catalog_says_of_settings_is_what_the_classes_have() -> None:
    """Without their code: studies and figures ask the catalog alone."""
    made = {name: method_class(name) for name, facts in METHODS.items() if facts.code}
    ratios = {name for name, kind in made.items() if "mask_ratio" in kind.own_settings()}
    assert ratios == {name for name in made if METHODS[name].ratio}


@pytest.mark.parametrize(
    "planted",
    [
        '_LABELS = {"gmt": "GMT", "hft": "HFT"}',
        'if method in ("sft", "dpo"):\n    ...',
        'ALL = (*("mft", "l1-mask"), other)',
        'def f(methods=["sft", "lora"]):\n    ...',
    ],
)
def test_a_planted_table_of_methods_is_found(planted: str) -> None:
    assert tables_in(ast.parse(planted))


def test_a_planted_direction_is_found() -> None:
    assert directions_in(ast.parse('def best(m, better="higher"):\n    return better == "lower"'))


def test_one_name_is_no_table() -> None:
    tree = ast.parse('if method == "mft":\n    return {"mft": 1, "other": 2}[method]')
    assert not tables_in(tree)
    assert not directions_in(ast.parse('loc = "outside lower center"'))


def test_files_were_read() -> None:
    assert {Path(file).parts[0] for file, _ in sources()} == {*INSTALLED_AS}
