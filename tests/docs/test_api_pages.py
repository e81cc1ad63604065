"""The Python pages name every public name, and nothing that does not exist."""

from __future__ import annotations

import importlib
import re
from collections import Counter

import deltalens
from deltalens.integrations import transformers
from tests.architecture.import_graph import ROOT

NAMED = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def named() -> list[str]:
    """What the pages describe, by its whole name."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    return [name for page in pages for name in NAMED.findall(page.read_text(encoding="utf-8"))]


def exists(name: str) -> bool:
    """Whether a module, or what is in one, has that name."""
    module, _, last = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), last)
    except ModuleNotFoundError:
        return False


def test_every_public_name_is_on_a_page() -> None:
    assert {f"deltalens.{name}" for name in deltalens.__all__} - {*named()} == set()


def test_every_callback_is_on_a_page() -> None:
    page = (ROOT / "docs" / "api" / "loops.md").read_text(encoding="utf-8")
    assert [name for name in transformers.__all__ if f"        - {name}\n" not in page] == []


def test_what_is_described_exists() -> None:
    assert [name for name in named() if not exists(name)] == []
    assert not exists("deltalens.no_such_name")
    assert not exists("deltalens.no_such_module.name")


def test_nothing_is_described_twice() -> None:
    assert [name for name, count in Counter(named()).items() if count > 1] == []
