"""The examples in the docstrings of public names run, and show what they say."""

from __future__ import annotations

import doctest
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import deltalens
from deltalens.demo import build
from deltalens.integrations import transformers
from tests.support.demo import TINY

FINDER = doctest.DocTestFinder(recurse=True)
WITHOUT = {"DeltaLensError"}
"""Names that nobody calls."""
CALLBACKS = (
    *("GradientMaskCallback", "GradientProbeCallback", "HalfFreezeCallback", "RandomMaskCallback"),
)
NAMES = [*sorted({*deltalens.__all__} - WITHOUT), *CALLBACKS]


def examples_of(name: str) -> Iterator[doctest.DocTest]:
    module = transformers if name in CALLBACKS else deltalens
    for test in FINDER.find(getattr(module, name), name, module=False):
        if test.examples:
            yield test


def test_every_public_name_has_an_example() -> None:
    assert {name for name in NAMES if not [*examples_of(name)]} == set()


@pytest.mark.parametrize("name", NAMES)
def test_its_examples_hold(
    name: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(demo, tmp_path / "demo"))
    if name == "build_demo":
        quick = functools.partial(build.build_probe_run, recipe=TINY)
        monkeypatch.setattr(build, "build_probe_run", quick)
    for test in examples_of(name):
        test.globs = {"deltalens": deltalens, name: getattr(deltalens, name, None)}
        shown: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        failed = runner.run(test, out=shown.append).failed
        assert not failed, "".join(shown)


def test_a_wrong_example_is_seen() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1
