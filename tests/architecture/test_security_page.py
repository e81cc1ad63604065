"""Every promise of SECURITY.md names a test, and every test that it names exists."""

import ast
import re

from tests.architecture.import_graph import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def page() -> str:
    return (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists():
    missing = [
        f"{file}::{name}"
        for file, name in NAMED.findall(page())
        if not (ROOT / file).exists() or name not in {"", *functions(file)}
    ]
    assert missing == []


def test_every_promise_names_one():
    promises = re.search(r"^## What is promised\n(.*?)^## ", page(), re.MULTILINE | re.DOTALL)
    assert promises
    items = re.split(r"^- ", promises.group(1), flags=re.MULTILINE)[1:]
    assert len(items) >= 10
    assert [item for item in items if not NAMED.search(item)] == []
