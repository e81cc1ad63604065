"""Folders of records have one frame: what says what a folder is, is read and written there."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.import_graph import project_sources
from tests.architecture.option_graph import docstrings

PACKAGE = "deltalens.io.records"
FRAME = f"{PACKAGE}.folder"
MANIFESTS = {"study.json", "texts.json", "run.json", "train.json"}
NAMED = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(MANIFESTS)))})(?!\w)")


def made(source: str) -> set[str]:
    """The names of the manifests that a module makes, by `Manifest(what, name, ...)`."""
    return {
        ast.literal_eval(node.args[1])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Manifest"
    }


def faults(source: str) -> Iterator[str]:
    """Where a module outside the package names a manifest, or reaches for the frame."""
    tree = ast.parse(source)
    documented = {id(text) for text in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in documented:
            if NAMED.search(str(node.value)):
                yield f"{node.lineno} names a manifest"
        elif isinstance(node, ast.ImportFrom) and (
            node.module == FRAME
            or (node.module == PACKAGE and "folder" in {alias.name for alias in node.names})
        ):
            yield f"{node.lineno} imports the frame"


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: source for name, (_, source) in project_sources().items()}


def in_package(module: str) -> bool:
    return f"{module}.".startswith(f"{PACKAGE}.")


def test_the_package_makes_these_manifests(sources: dict[str, str]) -> None:
    assert {name for module in filter(in_package, sources) for name in made(sources[module])} == (
        MANIFESTS
    )


def test_manifests_are_named_read_and_written_by_their_package_alone(
    sources: dict[str, str],
) -> None:
    others = {module: source for module, source in sources.items() if not in_package(module)}
    assert [f"{name}:{fault}" for name, source in others.items() for fault in faults(source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "from pathlib import Path\ndef f(p: Path):\n    return (p / 'study.json').read_text()",
        "NAME = 'train.json'",
        "def f(p):\n    return open(f'{p}/run.json')",
        "from deltalens.io.records.folder import Manifest",
        "from deltalens.io.records import folder",
    ],
)
def test_what_is_planted_is_found(source: str) -> None:
    assert len([*faults(source)]) == 1


@pytest.mark.parametrize("source", ['"""See study.json."""', "NAME = 'math_train.jsonl'"])
def test_what_names_none_passes(source: str) -> None:
    assert [*faults(source)] == []
