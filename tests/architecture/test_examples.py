"""The examples in the docstrings of public names run, each in a folder of its own.

That folder holds a tiny checkpoint pair `base` and `ft`, a drop study of it, `study`, and the run
that a probe has logged, `run`. An example that writes may write beside them.
"""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest
import torch

import deltalens
from tests.support.checkpoint_files import save_llama_pair

PUBLIC = {name: ("deltalens", name) for name in deltalens.__all__}
CALLBACKS = {
    name: ("deltalens.integrations.transformers", name)
    for name in (
        "GradientMaskCallback",
        "GradientProbeCallback",
        "HalfFreezeCallback",
        "RandomMaskCallback",
    )
}
WITHOUT = {"DeltaLensError", "drop", "drop_study", "inspect", "load_run", "load_study"} | {
    "open_checkpoint",
    "pair",
    "scan_landscape",
}
"""Public names that have no example (yet)."""


def examples_of(documented: object, name: str) -> list[doctest.DocTest]:
    """The doctests of a function, or of a class and its methods: they import all that they use."""
    found = doctest.DocTestFinder(exclude_empty=True).find(documented, name, globs={})
    return [test for test in found if test.examples]


def failures_of(test: doctest.DocTest) -> str:
    """What a doctest prints where it fails; empty if it passes."""
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    return "".join(report)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    ft, base = save_llama_pair(folder)
    deltalens.drop_study(ft, base, folder / "study", rates="0:1:0.5", strategies=["trivial"])
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with deltalens.GradientProbe(model, folder / "run"):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the folder above."""
    copy = tmp_path / "work"
    shutil.copytree(prepared, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize(("module", "name"), [*PUBLIC.values(), *CALLBACKS.values()])
@pytest.mark.usefixtures("folder")
def test_the_example_of_a_public_name_works(module: str, name: str) -> None:
    documented = getattr(importlib.import_module(module), name)
    examples = examples_of(documented, name)
    assert bool(examples) == (name not in WITHOUT), f"{name}: keep WITHOUT as it is"
    assert "".join(map(failures_of, examples)) == ""


def test_an_example_that_is_wrong_would_be_seen() -> None:
    def planted() -> None:
        """Add.

        Example:
            >>> 1 + 1
            3
        """

    (example,) = examples_of(planted, "planted")
    assert "Expected:\n    3\nGot:\n    2" in failures_of(example)
