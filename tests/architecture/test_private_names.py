"""Tests touch no private name of the product, nor of each other: held over the syntax trees."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.import_graph import ROOT, project_sources

PRIVATE = re.compile(r"_(?!_)\w*[^\W_]")
"""With an underscore before it and none behind: `_repr_html_` is what notebooks call."""
DOTTED = re.compile(r"\b(?:deltalens|tests)(?:\.\w+)*\._(?!_)\w+")
OURS = ("deltalens", "tests")


def is_private(name: str) -> bool:
    return PRIVATE.fullmatch(name) is not None


def defined_in(tree: ast.AST, inside_function: bool = False) -> Iterator[str]:
    """The private names that a module defines: of functions, classes, constants and attributes."""
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.ClassDef) or function:
            yield node.name  # type: ignore[attr-defined]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (part for one in targets for part in ast.walk(one)):
                if isinstance(target, ast.Attribute):
                    yield target.attr
                elif isinstance(target, ast.Name) and not inside_function:
                    yield target.id
        yield from defined_in(node, inside_function or function)


def product_names() -> set[str]:
    """The private names of the product."""
    trees = (ast.parse(source) for _, source in project_sources().values())
    return {name for tree in trees for name in defined_in(tree) if is_private(name)}


def private_uses(source: str, product: set[str]) -> list[str]:
    """Where a test's source touches a private name, as `line: what`."""
    tree = ast.parse(source)
    own = set(defined_in(tree))
    formatted = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    return [
        f"{node.lineno}: {what}"  # type: ignore[attr-defined]
        for node in ast.walk(tree)
        if id(node) not in formatted
        for what in _touched(node, product, own)
    ]


def _touched(node: ast.AST, product: set[str], own: set[str]) -> list[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
        path = (node.module or "").split(".")
        return [name for name in (*path, *(alias.name for alias in node.names)) if is_private(name)]
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names if alias.name.split(".")[0] in OURS]
        return [name for name in modules if any(map(is_private, name.split(".")))]
    if isinstance(node, ast.Attribute) and node.attr in product:
        itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        return [] if itself and node.attr in own else [ast.unparse(node)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _in_text(node.value, product)
    return []


def _in_text(text: str, product: set[str]) -> list[str]:
    """A name by itself, as `setattr` takes it; a dotted one; a program of its own."""
    if text in product:
        return [text]
    found = DOTTED.findall(text)
    if not found and "import" in text and any(name in text for name in OURS):
        try:
            return private_uses(text, product)
        except SyntaxError:
            return []
    return found


def sources() -> dict[Path, str]:
    """The modules of the tests, and their text."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    return {path: path.read_text(encoding="utf-8") for path in paths}


def test_tests_touch_none() -> None:
    product = product_names()
    touched = [
        f"{path.relative_to(ROOT)}:{use}"
        for path, source in sources().items()
        if path != Path(__file__)
        for use in private_uses(source, product)
    ]
    assert touched == []


@pytest.mark.parametrize(
    "source",
    [
        "from deltalens.io.reader import _open",
        "from deltalens._private import name",
        "import deltalens._private",
        "from tests.support.runs import _last",
        "def test(patch):\n    from deltalens.names import _NORM",
        "module._NORM = 3",
        "value = record.study._journal()",
        "class Mine(Study):\n    def work(self):\n        return self._journal()",
        "patch.setattr(module, '_NORM', 3)",
        "patch.setattr('deltalens.names._NORM', 3)",
        "RUN = '''\nfrom deltalens.names import _NORM\nprint(_NORM)\n'''",
        "names = [(module, '_NORM')]",
    ],
)
def test_a_planted_use_is_found(source: str) -> None:
    assert len(private_uses(source, {"_NORM", "_journal"})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from deltalens.io.reader import open_reader",
        "from torch.optim.optimizer import _params_t",
        "model._modules",
        "class Mine:\n    def __init__(self):\n        self._NORM = 3",
        "value = x.__class__",
        "page = result._repr_html_()",
        "_NORM = 3\nprint(_NORM)",
        "text = 'no name in here: _NORM'",
        "name = f'{domain}_NORM'",
    ],
)
def test_what_is_nobodys_private_name_is_left_alone(source: str) -> None:
    assert private_uses(source, {"_NORM", "_journal"}) == []


def test_private_names_of_the_product_are_known() -> None:
    source = "_A = 1\nclass _B:\n    _c: int = 2\n    def _d(self):\n        self._e, _f = 1, 2\n"
    assert set(defined_in(ast.parse(source))) == {"_A", "_B", "_c", "_d", "_e"}
    assert len(product_names()) > 500
