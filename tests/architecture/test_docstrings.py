"""Whatever a public function returns, its docstring says so; read from every syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.import_graph import INSTALLED_AS, ROOT


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions named in `__all__`, and the public methods of the classes that are."""
    names = {
        element.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__" and node.value is not None
        for element in ast.walk(node.value)
        if isinstance(element, ast.Constant) and isinstance(element.value, str)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and node.name in names:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def is_accessor(function: ast.FunctionDef) -> bool:
    """A property is described by what it is."""
    decorators = {ast.unparse(each).rpartition(".")[2] for each in function.decorator_list}
    return bool(decorators & {"property", "cached_property", "setter", "overload"})


def is_silent(function: ast.FunctionDef) -> bool:
    """Whether it returns something, and does not say what."""
    if is_accessor(function) or function.returns is None:
        return False
    if ast.unparse(function.returns) in ("None", "NoReturn"):
        return False
    text = ast.get_docstring(function) or ""
    inherited = text.startswith("See `") and text.count("\n") <= 2
    return not (inherited or "Returns:" in text or "Yields:" in text)


def silent() -> list[str]:
    found = []
    for folder in INSTALLED_AS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            file = path.relative_to(ROOT).as_posix()
            found += [f"{file}: {name}" for name, each in public_functions(tree) if is_silent(each)]
    return found


def test_every_public_function_says_what_it_returns() -> None:
    assert silent() == []


def test_there_are_some() -> None:
    path = ROOT / "deltalens" / "api" / "studies.py"
    names = [name for name, _ in public_functions(ast.parse(path.read_text(encoding="utf-8")))]
    assert {"drop_study", "evaluate", "scan_landscape", "sweep_layers_drop"} == {*names}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('__all__ = ["f"]\ndef f() -> int:\n    """One."""', True),
        (
            '__all__ = ["f"]\ndef f() -> int:\n    """One.\n\n    Returns:\n        1.\n    """',
            False,
        ),
        ('__all__ = ["f"]\ndef f() -> None:\n    """Nothing."""', False),
        ('__all__ = ["A"]\nclass A:\n    def f(self) -> int:\n        """One."""', True),
        (
            '__all__ = ["A"]\nclass A:\n    @property\n    def f(self) -> int:\n        """One."""',
            False,
        ),
        ('__all__ = ["A"]\nclass A:\n    def f(self) -> int:\n        """See `B`."""', False),
    ],
)
def test_a_planted_one_is_found(source: str, expected: bool) -> None:
    (function,) = [each for _, each in public_functions(ast.parse(source))]
    assert is_silent(function) is expected


def test_private_ones_are_passed_by() -> None:
    source = (
        '__all__ = ["f"]\ndef f() -> None:\n    """Nothing."""\ndef _g() -> int:\n    """One."""'
    )
    assert [name for name, _ in public_functions(ast.parse(source))] == ["f"]
