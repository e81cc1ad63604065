"""README's training examples can be typed in the demo's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltalens.cli.main import app
from deltalens.demo import build_demo
from tests.architecture.import_graph import ROOT
from tests.architecture.test_readme import typed_commands
from tests.support.demo import TINY

TRAINING = ("train", "sweep", "compare", "efficiency")
QUICK = {
    "train": ["--steps", "1"],
    "compare": ["--steps", "1", "--seeds", "1"],
    "sweep mask-ratio": ["--steps", "1", "--seeds", "1", "--mask-ratios", "0.5"],
    "sweep data-ratio": ["--steps", "1", "--seeds", "1", "--data-ratios", "1"],
    "sweep layers": ["--steps", "1", "--seeds", "1"],
    "sweep layers-drop": [],
    "efficiency": ["--block-steps", "1", "--repeats", "1"],
}
"""What makes an example take seconds."""


def examples() -> Iterator[list[str]]:
    for words in typed_commands((ROOT / "README.md").read_text(encoding="utf-8")):
        if words[0] == "deltalens" and words[1] in TRAINING:
            yield words[1:]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `deltalens demo` leaves it, of few rows."""
    paths = build_demo(tmp_path_factory.mktemp("demo"), recipe=replace(TINY, blocks=3))
    for file in (paths.train, paths.test):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:24]))
    return paths.folder


@pytest.mark.slow
@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_an_example_works_in_the_demos_folder(
    words: list[str], demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(demo, tmp_path / "demo"))
    name = " ".join(words[:2]) if words[0] == "sweep" else words[0]
    done = CliRunner().invoke(app, [*words, *QUICK[name], "-q"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert Path(words[words.index("-o") + 1]).is_dir()
