"""The demo's pair, as the examples of docstrings take it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import deltalens
from deltalens.demo import build_demo, build_probe_run
from tests.support.demo import TINY


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `ft`, `train.jsonl`, `test.jsonl`, a study and a run."""
    folder = tmp_path_factory.mktemp("demo")
    recipe = replace(TINY, blocks=3)
    paths = build_demo(folder, recipe=recipe)
    for file in (paths.train, paths.test):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:32]))
    shutil.copytree(build_probe_run(folder, recipe=recipe).probe_run, folder / "run")
    deltalens.drop_study(
        paths.ft, paths.base, folder / "study", rates="0,0.5,1", seeds=1, data=paths.test
    )
    return folder
